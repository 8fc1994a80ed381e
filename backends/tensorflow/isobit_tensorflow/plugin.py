"""The entry point: registers the backend and imports no framework."""

from __future__ import annotations

from collections.abc import Sequence

from isobit.plugins import hookimpl
from isobit_tensorflow.backend import TensorFlowBackend


@hookimpl
def isobit_backends() -> Sequence[TensorFlowBackend]:
    """The TensorFlow backend."""
    return [TensorFlowBackend()]
