"""A written model file is loaded once by the runtime that will load it."""

from __future__ import annotations

from pathlib import Path

import onnxruntime

from isobit.errors import ModelError
from isobit_onnx.read.error_text import one_line
from isobit_onnx.read.open_session import open_session


def check_loads(path: Path) -> None:
    """Load the model in onnxruntime, integer kernels and all. Raises ModelError."""
    options = onnxruntime.SessionOptions()
    # Not without prepacking: constants are then laid out together, in time that grows with the square of their number.
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    try:
        open_session(str(path), options)
    except Exception as error:
        raise not_loaded(error) from error


def not_loaded(error: Exception) -> ModelError:
    """What is said of a file that the default session of onnxruntime does not load."""
    return ModelError(
        f"onnxruntime does not load the exported model: {one_line(error)}; nothing was written: leave the layer "
        "that it names in float (exclude), or choose formats that it runs (uint8 activations, int8 weights)"
    )
