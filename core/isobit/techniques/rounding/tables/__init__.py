"""Tables that are looked up by indices: their scales, and sums of their rows."""
