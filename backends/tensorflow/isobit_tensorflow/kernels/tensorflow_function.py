"""A function of TensorFlow as an operation of Keras: what a layer calls that has no counterpart in `keras.ops`."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import keras

from isobit.errors import ModelError

_PACKAGE = "tensorflow.python.ops."

#: Modules of TensorFlow whose functions compute tensors from tensors and do nothing else: no files, no Python code.
_MODULES = frozenset(f"{_PACKAGE}{name}" for name in (
    "array_ops", "array_ops_stack", "clip_ops", "gen_array_ops", "gen_image_ops", "gen_linalg_ops", "gen_math_ops",
    "gen_nn_ops", "image_ops_impl", "linalg_ops", "math_ops", "nn_impl", "nn_ops", "sort_ops", "special_math_ops",
    "signal.fft_ops", "signal.mel_ops", "signal.shape_ops", "signal.spectral_ops", "signal.window_ops",
))  # fmt: skip


def is_pure(function: Callable[..., Any]) -> bool:
    """Whether a function of TensorFlow computes tensors from tensors and nothing else."""
    return _found(function.__module__, function.__name__) is not None


def _found(module: str, name: str) -> Callable[..., Any] | None:
    """The function of that name in one of the modules, also where it is of another of them; no other is imported."""
    if module not in _MODULES:
        return None
    found = getattr(importlib.import_module(module), name, None)
    return found if inspect.isfunction(found) and found.__module__ in _MODULES else None


@keras.saving.register_keras_serializable("isobit")
class TensorFlowFunction(keras.Operation):  # type: ignore[misc]
    """Calls the function ``module:name`` of TensorFlow. Raises ModelError for one that does more than compute."""

    def __init__(self, function: str, name: str | None = None) -> None:
        module, _, attribute = function.partition(":")
        found = _found(module, attribute)
        if found is None:
            raise ModelError(f"{function!r} is no function of TensorFlow that computes tensors and nothing else")
        super().__init__(name=name or attribute)
        self.function = function
        self._function = found

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """What TensorFlow gives."""
        return self._function(*args, **kwargs)

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        """Shapes and types by tracing it."""
        return keras.src.backend.compute_output_spec(self._function, *args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        """The function by its name."""
        return {"name": self.name, "function": self.function}
