"""The noise that each group of quantizers makes alone, and which of two cancel."""
