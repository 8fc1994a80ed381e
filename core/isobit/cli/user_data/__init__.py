"""Data as files: arrays, images and folders of them, read as batches for a model."""
