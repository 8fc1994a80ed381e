"""What `isobit.quantize` and the command line do unless told otherwise."""

from __future__ import annotations

#: The recipe: fold, correct biases, balance channels, each step kept where it helps.
DEFAULT_RECIPE = "fast"

#: What runs the result: the file that `export` writes is for onnxruntime.
DEFAULT_TARGET = "onnxruntime-cpu"
