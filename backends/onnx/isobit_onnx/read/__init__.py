"""An ONNX model in the form that the backend works on: one opset, names for everything, constants folded."""
