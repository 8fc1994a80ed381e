"""What helps to capture code that asks tensors for values."""
