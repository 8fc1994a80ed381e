"""Files: ONNX, torch's own formats, and isobit's saved state."""
