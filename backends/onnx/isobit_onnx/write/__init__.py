"""A neutral graph written as a float ONNX model."""
