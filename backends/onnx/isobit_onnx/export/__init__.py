"""Files for deployment: QDQ models, read back and loaded before they count as written, and float models."""
