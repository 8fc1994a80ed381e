"""The ONNX backend of isobit: models through onnx-ir, runs through onnxruntime, simulators as plain QDQ models."""
