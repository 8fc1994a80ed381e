"""isobit's PyTorch backend."""
