"""Export: one path for every backend. The float ONNX model, then the ONNX backend's QDQ writer with these encodings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from isobit.backend import BackendModel
from isobit.encoding import Encodings
from isobit.errors import PluginError
from isobit.files import check_writable, write_folder
from isobit.formats.isobit_json import IsobitJson
from isobit.plugins import registry

if TYPE_CHECKING:
    from isobit.quantsim import QuantSim

MODEL, ENCODINGS, SUMMARY = "model.qdq.onnx", "encodings.json", "summary.txt"


@runtime_checkable
class QdqWriter(Protocol):
    """What the ONNX backend adds to the contract: writing a float model and encodings as a QDQ model."""

    def write_qdq(self, model: BackendModel, encodings: Encodings, path: Path) -> list[str]:
        """Write to `path`; returns notes, for example that the file was not checked."""
        ...


def export(sim: QuantSim, folder: Path) -> dict[str, Path]:
    """Write the QDQ model, the encodings and the summary of a calibrated simulator into `folder`."""
    sim.require_calibrated()
    check_writable(folder)
    writer = registry().backend("onnx")
    if not isinstance(writer, QdqWriter):
        raise PluginError("the plug-in named 'onnx' cannot write QDQ models: reinstall isobit")
    encodings = sim.encodings
    with write_folder(folder) as staging:
        notes = writer.write_qdq(sim.backend_model, encodings, staging / MODEL)
        IsobitJson().write(encodings, staging / ENCODINGS)
        text = str(sim.report) + "".join(f"\n{note}\n" for note in notes)
        (staging / SUMMARY).write_text(text, "utf-8")
    return {"model": folder / MODEL, "encodings": folder / ENCODINGS, "summary": folder / SUMMARY}
