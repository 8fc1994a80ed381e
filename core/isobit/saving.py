"""A simulator as one file, without the original weights: edits, changed weights, formats, encodings, statistics.

The file is a zip of JSON, TOML, safetensors and npz. Loading it runs no code of its own.
"""

from __future__ import annotations

import io
import json
import zipfile
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isobit.edit_records import edits_from_records, edits_to_records
from isobit.encoding import Encodings
from isobit.errors import IsobitError, ModelError
from isobit.files import write_atomically
from isobit.fingerprint import check_fingerprint, fingerprint
from isobit.formats import isobit_json
from isobit.plugins import registry
from isobit.statistics import Statistics
from isobit.target import parse_target
from isobit.wishes import Wishes

if TYPE_CHECKING:
    from isobit.backend import Backend
    from isobit.quantsim import QuantSim

VERSION = 2

_MANIFEST, _TARGET, _ENCODINGS, _FROZEN = "manifest.json", "target.toml", "encodings.json", "frozen.json"
_WEIGHTS, _STATISTICS = "weights.safetensors", "statistics.npz"


def save(sim: QuantSim, path: Path) -> None:
    """Write a simulator, whole or not at all."""
    from safetensors.numpy import save as save_tensors

    records, arrays = edits_to_records(sim.edits)
    wishes = sim.wishes
    manifest = {
        "format": "isobit sim",
        "version": VERSION,
        "fingerprint": sim.fingerprint(),
        "weights": None if wishes.weights is None else str(wishes.weights),
        "activations": None if wishes.activations is None else str(wishes.activations),
        "overrides": {k: None if v is None else str(v) for k, v in (wishes.overrides or {}).items()},
        "exclude": list(wishes.exclude),
        "calibration": sim.calibration,
        "edits": records,
    }
    with write_atomically(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(_MANIFEST, json.dumps(manifest))
        archive.writestr(_TARGET, sim.target.text)
        archive.writestr(_WEIGHTS, save_tensors(arrays))
        archive.writestr(_ENCODINGS, isobit_json.dumps(sim.backend_model.encodings()))
        archive.writestr(_FROZEN, isobit_json.dumps(sim.frozen))
        if len(sim.statistics):
            archive.writestr(_STATISTICS, sim.statistics.to_bytes())


def load(
    path: str | PathLike[str], model: Any, example_inputs: Any = None, *, backend: str | Backend | None = None
) -> QuantSim:
    """Put a saved simulator on its float model again.

    Raises ModelError when the file is none, or when `model` is not the model it was made from (which weight differs).
    """
    from isobit.quantsim import QuantSim

    where = fspath(path)
    contents = _read(where)
    manifest = contents["manifest"]
    opened = registry().open(model, example_inputs, backend)
    check_fingerprint(manifest["fingerprint"], fingerprint(opened.graph, opened.weight), where)
    keys = ("weights", "activations", "overrides", "exclude")
    sim = QuantSim.of_backend_model(opened, contents["target"], Wishes(*(manifest[key] for key in keys)))
    parts = (contents[key] for key in ("edits", "encodings", "statistics", "frozen"))
    sim.restore(*parts, calibration=manifest["calibration"])
    return sim


def is_saved(path: str | PathLike[str]) -> bool:
    """Whether a file is a saved simulator, by its content."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return {_MANIFEST, _ENCODINGS} <= set(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def encodings_in(path: str | PathLike[str]) -> Encodings:
    """The encodings of a saved simulator, without its model. Raises ModelError."""
    encodings: Encodings = _read(fspath(path))["encodings"]
    return encodings


def _read(where: str) -> dict[str, Any]:
    """Everything in the file, checked and parsed."""
    from safetensors.numpy import load as load_tensors

    try:
        with zipfile.ZipFile(where) as archive:
            manifest = json.loads(archive.read(_MANIFEST))
            if manifest.get("format") != "isobit sim" or manifest.get("version") != VERSION:
                raise ModelError(f"{where}: not a saved simulator of version {VERSION}")
            statistics = Statistics()
            if _STATISTICS in archive.namelist():
                statistics = Statistics.from_file(io.BytesIO(archive.read(_STATISTICS)), where)
            return {
                "manifest": manifest,
                "target": parse_target(archive.read(_TARGET).decode(), f"{where}: {_TARGET}"),
                "edits": edits_from_records(manifest["edits"], load_tensors(archive.read(_WEIGHTS))),
                "encodings": isobit_json.loads(archive.read(_ENCODINGS).decode(), f"{where}: {_ENCODINGS}"),
                "frozen": isobit_json.loads(archive.read(_FROZEN).decode(), f"{where}: {_FROZEN}"),
                "statistics": statistics,
            }
    except IsobitError:
        raise
    except FileNotFoundError as error:
        raise ModelError(f"{where} does not exist") from error
    except Exception as error:  # zip, JSON and safetensors raise their own kinds for a damaged file
        raise ModelError(f"{where}: not a saved simulator, or damaged: {error}") from error
