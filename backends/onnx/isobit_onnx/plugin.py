"""The entry point: registers the backend and a format, and imports no framework."""

from __future__ import annotations

from collections.abc import Sequence

from isobit.plugins import hookimpl
from isobit_onnx.backend import OnnxBackend
from isobit_onnx.export.qdq_format import OnnxQdq


@hookimpl
def isobit_backends() -> Sequence[OnnxBackend]:
    """The ONNX backend."""
    return [OnnxBackend()]


@hookimpl
def isobit_formats() -> Sequence[OnnxQdq]:
    """QDQ models as files of encodings."""
    return [OnnxQdq()]
