"""Types and shapes that ONNX's own inference and onnx-ir do not tell."""
