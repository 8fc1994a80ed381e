"""Files that leave: QDQ models and float models, loaded once before they count as written."""
