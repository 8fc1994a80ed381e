"""The entry point: registers the backend and imports no framework."""

from __future__ import annotations

from collections.abc import Sequence

from isobit.plugins import hookimpl
from isobit_onnx.backend import OnnxBackend


@hookimpl
def isobit_backends() -> Sequence[OnnxBackend]:
    """The ONNX backend."""
    return [OnnxBackend()]
