"""Export: the QDQ model by one path for every backend, and what a backend can write in its framework's own formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from isobit.backend import BackendModel
from isobit.completeness import check_file
from isobit.encoding import Encodings
from isobit.errors import OutputError, PluginError, did_you_mean
from isobit.files import check_writable, write_folder
from isobit.formats.isobit_json import IsobitJson
from isobit.formats.names import Names
from isobit.plugins import registry

if TYPE_CHECKING:
    from isobit.quantsim import QuantSim

ONNX = "onnx"
MODEL, ENCODINGS, SUMMARY = "model.qdq.onnx", "encodings.json", "summary.txt"
FLOAT_MODEL, FOREIGN = "model.onnx", "model"


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


def export(
    sim: QuantSim, folder: Path, formats: str | Sequence[str] = (ONNX,), encodings_formats: str | Sequence[str] = ()
) -> dict[str, Path]:
    """Write a calibrated simulator in `formats`, its encodings and its summary into `folder`."""
    sim.require_calibrated()
    files = _files(sim.backend_model, formats)
    foreign = _foreign_files(encodings_formats)
    check_writable(folder)
    encodings = sim.encodings
    with write_folder(folder) as staging:
        notes = [note for form in files for note in _write(sim.backend_model, form, encodings, staging / files[form])]
        IsobitJson().write(encodings, staging / ENCODINGS)
        check_file(staging / ENCODINGS, IsobitJson(), encodings, None, sim.plan)
        notes += _write_foreign(sim, foreign, encodings, staging)
        text = str(sim.report) + "".join(f"\n{note}\n" for note in notes)
        (staging / SUMMARY).write_text(text, "utf-8")
    models = {"model" if form == ONNX else form: folder / file for form, file in files.items()}
    for form, file in foreign.items():
        models |= {"float_model": folder / FLOAT_MODEL, form: folder / file}
    return {**models, "encodings": folder / ENCODINGS, "summary": folder / SUMMARY}


def _foreign_files(formats: str | Sequence[str]) -> dict[str, str]:
    """The file name of each further encodings format. Raises EncodingError for one that is not known."""
    wanted = [formats] if isinstance(formats, str) else list(formats)
    files = {form: registry().format(form).suffix for form in wanted if form != IsobitJson.name}
    if len(files) == 1:
        return {form: FOREIGN + suffix for form, suffix in files.items()}
    return {form: f"{FOREIGN}.{form}{suffix}" for form, suffix in files.items()}


def _write_foreign(sim: QuantSim, files: Mapping[str, str], encodings: Encodings, staging: Path) -> list[str]:
    """Write encodings of other tools with the float ONNX model that their names belong to; each is read back."""
    if not files:
        return []
    _onnx_writer().write_float(sim.backend_model, staging / FLOAT_MODEL)
    names = Names.of(sim)
    notes = []
    for form, file in files.items():
        chosen = registry().format(form)
        notes += chosen.write(encodings, staging / file, names)
        check_file(staging / file, chosen, encodings, names, sim.plan)
    return notes


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
    return _onnx_writer().write_qdq(model, encodings, path)


def _onnx_writer() -> QdqWriter:
    writer = registry().backend("onnx")
    if not isinstance(writer, QdqWriter):
        raise PluginError("the plug-in named 'onnx' cannot write QDQ models: reinstall isobit")
    return writer
