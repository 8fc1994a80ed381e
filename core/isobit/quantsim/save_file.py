"""A simulator as one file, without the original weights: edits, new weights, formats, encodings, statistics.

The file is a zip of JSON, TOML, safetensors and npz. Loading it runs no code of its own.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np

from isobit.backend.optional import CountsBatches, OpenedByExample
from isobit.edits.records import edits_from_records, edits_to_records
from isobit.encodings.encoding import Encodings
from isobit.errors import IsobitError, ModelError
from isobit.files import check_unpacked_size, write_atomically
from isobit.formats import isobit_json
from isobit.quantsim.simulation import Simulation
from isobit.quantsim.training.saved_adapters import adapters_to_record
from isobit.statistics.statistics import Statistics
from isobit.targets.target import parse_target

VERSION = 3

_MANIFEST, _TARGET, _ENCODINGS, _FROZEN = "manifest.json", "target.toml", "encodings.json", "frozen.json"
_WEIGHTS, _STATISTICS, _EXAMPLE = "weights.safetensors", "statistics.npz", "example.safetensors"


def save(simulation: Simulation, path: Path) -> None:
    """Write a simulation, whole or not at all."""
    from safetensors.numpy import save as save_tensors

    simulation.require_numbers()
    trained = simulation.trained_weights()
    records, arrays = edits_to_records([*simulation.edits, *([] if trained is None else [trained])])
    config, inner = simulation.config, simulation.model.inner
    manifest = {
        "format": "isobit sim",
        "version": VERSION,
        "fingerprint": simulation.fingerprint(),
        "weights": None if config.weights is None else str(config.weights),
        "activations": None if config.activations is None else str(config.activations),
        "overrides": {k: None if v is None else str(v) for k, v in (config.overrides or {}).items()},
        "exclude": list(config.exclude),
        "calibration": simulation.calibration,
        "edits": records,
        "example": simulation.example,
        "is_trained": simulation.is_trained,
        "batches_seen": dict(inner.batches_seen) if isinstance(inner, CountsBatches) else {},
        "adapters": adapters_to_record(simulation, arrays.keep) or {},
    }
    with write_atomically(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(_MANIFEST, json.dumps(manifest))
        archive.writestr(_TARGET, simulation.target.text)
        archive.writestr(_WEIGHTS, save_tensors(arrays))
        archive.writestr(_ENCODINGS, isobit_json.dumps(simulation.model.encodings()))
        archive.writestr(_FROZEN, isobit_json.dumps(simulation.frozen))
        if len(simulation.statistics):
            archive.writestr(_STATISTICS, simulation.statistics.to_bytes())
        example = inner.example if isinstance(inner, OpenedByExample) else None
        if example is not None:
            archive.writestr(_EXAMPLE, save_tensors({name: np.ascontiguousarray(a) for name, a in example.items()}))


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
    encodings: Encodings = read_saved(fspath(path))["encodings"]
    return encodings


def read_saved(where: str) -> dict[str, Any]:
    """Everything in the file, checked and parsed."""
    from safetensors.numpy import load as load_tensors

    try:
        with zipfile.ZipFile(where) as archive:
            check_unpacked_size(archive)
            manifest = json.loads(archive.read(_MANIFEST))
            if manifest.get("format") != "isobit sim" or manifest.get("version") != VERSION:
                raise ModelError(f"{where}: not a saved simulator of version {VERSION}")
            manifest.setdefault("batches_seen", {})  # files from before it was kept
            _check_manifest(manifest, where)
            example = load_tensors(archive.read(_EXAMPLE)) if _EXAMPLE in archive.namelist() else None
            statistics = Statistics()
            if _STATISTICS in archive.namelist():
                statistics = Statistics.from_file(io.BytesIO(archive.read(_STATISTICS)), where)
            arrays = load_tensors(archive.read(_WEIGHTS))
            return {
                "manifest": manifest,
                "arrays": arrays,
                "target": parse_target(archive.read(_TARGET).decode(), f"{where}: {_TARGET}"),
                "edits": edits_from_records(manifest["edits"], arrays),
                "encodings": isobit_json.loads(archive.read(_ENCODINGS).decode(), f"{where}: {_ENCODINGS}"),
                "frozen": isobit_json.loads(archive.read(_FROZEN).decode(), f"{where}: {_FROZEN}"),
                "statistics": statistics,
                "example": example,
            }
    except IsobitError:
        raise
    except FileNotFoundError as error:
        raise ModelError(f"{where} does not exist") from error
    except OSError as error:
        raise ModelError(f"{where}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # zip, JSON and safetensors raise their own kinds for a damaged file
        raise ModelError(f"{where}: not a saved simulator, or damaged: {error}") from error


def restore_state(simulation: Simulation, contents: Mapping[str, Any]) -> None:
    """Give a simulation, edited as the saved one was, what `read_saved` found of its grids and statistics."""
    manifest = contents["manifest"]
    parts = (contents[key] for key in ("encodings", "statistics", "frozen"))
    simulation.restore(*parts, **{key: manifest[key] for key in ("calibration", "is_trained", "batches_seen")})


def _check_manifest(manifest: Mapping[str, Any], where: str) -> None:
    """Raise ModelError naming the field of the manifest that is missing or of another type."""

    def is_text_or_none(value: Any) -> bool:
        return value is None or isinstance(value, str)

    def is_list_of_texts(value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)

    checks: Mapping[str, tuple[Callable[[Any], bool], str]] = {
        "fingerprint": (
            lambda v: isinstance(v, dict) and all(isinstance(item, str) for item in v.values()),
            "an object of texts",
        ),
        "weights": (is_text_or_none, "a text or null"),
        "activations": (is_text_or_none, "a text or null"),
        "overrides": (
            lambda v: isinstance(v, dict) and all(map(is_text_or_none, v.values())),
            "an object of texts and nulls",
        ),
        "exclude": (is_list_of_texts, "a list of texts"),
        "calibration": (is_text_or_none, "a text or null"),
        "edits": (lambda v: isinstance(v, list) and all(isinstance(row, dict) for row in v), "a list of objects"),
        "is_trained": (lambda v: isinstance(v, bool), "true or false"),
        "batches_seen": (
            lambda v: isinstance(v, dict) and all(type(n) is int and n >= 0 for n in v.values()),
            "an object of whole numbers",
        ),
        "adapters": (lambda v: isinstance(v, dict), "an object"),
    }
    for field, (is_valid, expected) in checks.items():
        if field not in manifest:
            raise ModelError(f"{where}: {_MANIFEST}: {field}: this field is missing")
        if not is_valid(manifest[field]):
            found = str(manifest[field])
            raise ModelError(f"{where}: {_MANIFEST}: {field}: must be {expected}, found {found[:60]}")
