"""What an ONNX file must hold before it is read: valid structure, and constants that fit their dims."""
