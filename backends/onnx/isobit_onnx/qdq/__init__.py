"""QuantizeLinear and DequantizeLinear: written into a model, read back from one, checked in a file."""
