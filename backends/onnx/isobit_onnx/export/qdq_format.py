"""``onnx-qdq``: QDQ models as a format of encodings. Imports onnx only when a file is read or written."""

from __future__ import annotations

from importlib.util import find_spec
from os import PathLike
from pathlib import Path

from isobit.encodings import Encodings
from isobit.errors import EncodingError, PluginError
from isobit.files import write_folder
from isobit.formats import EncodingsFormat, FileContent, Names


class OnnxQdq(EncodingsFormat):
    """ONNX models with QuantizeLinear and DequantizeLinear, made by any tool."""

    name = "onnx-qdq"
    suffix = ".onnx"
    uses_names = True

    def recognises(self, content: FileContent) -> bool:
        """Whether the file is an ONNX model by its name."""
        return content.path.suffix.lower() == self.suffix

    def read(self, path: str | PathLike[str], names: Names | None = None) -> Encodings:
        """The encodings of a QDQ model."""
        _require()
        from isobit_onnx.qdq.reader import read_qdq

        return read_qdq(path, names)

    def write(self, encodings: Encodings, path: str | PathLike[str], names: Names | None = None) -> list[str]:
        """Write the model of `names` with these encodings as a QDQ model."""
        if names is None or names.model is None:
            raise EncodingError("a QDQ model is written from a float model: give the model")
        _require()
        from isobit_onnx.export.export_qdq import write_qdq

        path = Path(path).resolve()  # a link stays, and what it leads to is replaced
        with write_folder(path.parent) as staging:  # weights of large models are a file beside it
            return write_qdq(names.model, encodings, staging / path.name)


def _require() -> None:
    missing = [name for name in ("onnx", "onnx_ir", "onnxscript") if find_spec(name) is None]
    if missing:
        raise PluginError(f"format 'onnx-qdq' needs {', '.join(missing)}: pip install \"isobit[onnx-cpu]\"")
