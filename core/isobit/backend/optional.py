"""What a backend, or an opened model, may have beside the contract. The core asks with isinstance."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

from isobit.backend.contract import BackendModel
from isobit.encodings.encoding import Encodings


@runtime_checkable
class ReportsDevice(Protocol):
    """Optional, asked for by ``isinstance``: what `isobit backends` shows of a backend's framework."""

    def device(self) -> str:
        """``CPU``, or ``CUDA`` where the installed build has it and a driver is there; found without an import."""
        ...


@runtime_checkable
class QdqWriter(Protocol):
    """What the ONNX backend adds to the contract: writing a float model and encodings as a QDQ model."""

    def write_qdq(self, model: BackendModel, encodings: Encodings, path: Path) -> list[str]:
        """Write to `path`; returns notes, for example that the file was not checked."""
        ...

    def write_float(self, model: BackendModel, path: Path) -> None:
        """Write the float model, whose names are those of encodings files for ONNX tools."""
        ...


@runtime_checkable
class NativeExporter(Protocol):
    """What a BackendModel adds to the contract when it can be written in formats of its own framework."""

    @property
    def native_formats(self) -> Mapping[str, str]:
        """Each format, as users write it in ``formats=``, and the name of its file or folder."""
        ...

    def write_native(self, form: str, encodings: Encodings, path: Path) -> list[str]:
        """Write the quantized model in one of `native_formats` to `path`, a file or folder; returns notes."""
        ...


@runtime_checkable
class HasInnerValues(Protocol):
    """What a BackendModel adds whose ONNX model has values that the neutral graph does not."""

    def inner_values(self) -> Mapping[str, str]:
        """ONNX values before a reshape inside one neutral node, and the tensor whose encoding is theirs."""
        ...
