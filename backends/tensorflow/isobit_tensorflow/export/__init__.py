"""What leaves the simulator: ONNX, and its state as bytes."""
