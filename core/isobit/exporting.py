"""Export: the QDQ model by one path for every backend, and what a backend can write in its framework's own formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from isobit.backend import BackendModel
from isobit.encoding import Encodings
from isobit.errors import OutputError, PluginError, did_you_mean
from isobit.files import check_writable, write_folder
from isobit.formats.isobit_json import IsobitJson
from isobit.plugins import registry

if TYPE_CHECKING:
    from isobit.quantsim import QuantSim

ONNX = "onnx"
MODEL, ENCODINGS, SUMMARY = "model.qdq.onnx", "encodings.json", "summary.txt"


@runtime_checkable
class QdqWriter(Protocol):
    """What the ONNX backend adds to the contract: writing a float model and encodings as a QDQ model."""

    def write_qdq(self, model: BackendModel, encodings: Encodings, path: Path) -> list[str]:
        """Write to `path`; returns notes, for example that the file was not checked."""
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


def export(sim: QuantSim, folder: Path, formats: str | Sequence[str] = (ONNX,)) -> dict[str, Path]:
    """Write a calibrated simulator in `formats`, its encodings and its summary into `folder`."""
    sim.require_calibrated()
    files = _files(sim.backend_model, formats)
    check_writable(folder)
    encodings = sim.encodings
    with write_folder(folder) as staging:
        notes = [note for form in files for note in _write(sim.backend_model, form, encodings, staging / files[form])]
        IsobitJson().write(encodings, staging / ENCODINGS)
        text = str(sim.report) + "".join(f"\n{note}\n" for note in notes)
        (staging / SUMMARY).write_text(text, "utf-8")
    models = {"model" if form == ONNX else form: folder / file for form, file in files.items()}
    return {**models, "encodings": folder / ENCODINGS, "summary": folder / SUMMARY}


def _files(model: BackendModel, formats: str | Sequence[str]) -> dict[str, str]:
    """The file name of each wanted format. Raises OutputError for one that is not known."""
    native = model.native_formats if isinstance(model, NativeExporter) else {}
    known = {ONNX: MODEL, **native}
    wanted = [formats] if isinstance(formats, str) else list(formats)
    if not wanted:
        raise OutputError(f"export needs a format: {', '.join(known)}")
    for form in wanted:
        if form not in known:
            near = did_you_mean(str(form), known)
            raise OutputError(f"no export format {form!r}{near}; this model can be written as {', '.join(known)}")
    return {form: known[form] for form in wanted}


def _write(model: BackendModel, form: str, encodings: Encodings, path: Path) -> list[str]:
    if form != ONNX:
        assert isinstance(model, NativeExporter)  # or `_files` would not know the format
        return model.write_native(form, encodings, path)
    writer = registry().backend("onnx")
    if not isinstance(writer, QdqWriter):
        raise PluginError("the plug-in named 'onnx' cannot write QDQ models: reinstall isobit")
    return writer.write_qdq(model, encodings, path)
