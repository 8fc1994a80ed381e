"""What an OnnxModel is, as bytes and back: a zip of model, weights, quantizers and conditions. No pickle."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import onnx_ir as ir

from isobit.encodings import Encoding, Encodings
from isobit.errors import ModelError
from isobit.files import temporary_folder
from isobit.formats import isobit_json
from isobit.graph import Site, site_key, site_of

_MODEL, _WEIGHTS, _QUANTIZERS, _OFF = "model.onnx", "weights.bin", "encodings.json", "off.json"
_CONDITIONS = "conditions.json"  # what each says of the example, in the order of their models

Decided = tuple[bytes, dict[str, bool]]


class State(NamedTuple):
    """A float model, its quantizers, the sites of those that are switched off, and what an example has decided."""

    float_model: ir.Model
    encodings: Encodings
    off: list[Site]
    decided: list[Decided]


def dump(
    model: ir.Model, encodings: Mapping[Site, Encoding], off: Iterable[Site], decided: Sequence[Decided] = ()
) -> bytes:
    """The bytes of a float model, its quantizers, and models of conditions with what every batch must make of them."""
    buffer = io.BytesIO()
    with temporary_folder() as folder, zipfile.ZipFile(buffer, "w") as archive:
        ir.save(model, folder / _MODEL, external_data=_WEIGHTS)
        for name in (_MODEL, _WEIGHTS):
            if (folder / name).exists():
                archive.write(folder / name, name)
        archive.writestr(_QUANTIZERS, isobit_json.dumps(Encodings(encodings)))
        archive.writestr(_OFF, json.dumps([site_key(site) for site in off]))
        archive.writestr(_CONDITIONS, json.dumps([values for _, values in decided]))
        for index, (conditions, _) in enumerate(decided):
            archive.writestr(_condition_file(index), conditions)
    return buffer.getvalue()


def load(state: bytes) -> State:
    """What `dump` wrote. Raises ModelError for other bytes."""
    try:
        with temporary_folder() as folder, zipfile.ZipFile(io.BytesIO(state)) as archive:
            for name in (_MODEL, _WEIGHTS):
                if name in archive.namelist():
                    archive.extract(name, folder)
            model = ir.load(folder / _MODEL)
            ir.external_data.load_to_model(model)  # the folder goes
            encodings = isobit_json.loads(archive.read(_QUANTIZERS).decode(), "state")
            off = [site_of(*key) for key in json.loads(archive.read(_OFF))]
            decided = _decided(archive)
    except (zipfile.BadZipFile, KeyError, OSError, ValueError) as error:
        raise ModelError(f"these bytes are no state of an ONNX model: {error}") from error
    return State(model, encodings, off, decided)


def _decided(archive: zipfile.ZipFile) -> list[Decided]:
    if _CONDITIONS not in archive.namelist():  # of an earlier version
        return []
    found = json.loads(archive.read(_CONDITIONS))
    if not all(isinstance(values, dict) and all(isinstance(v, bool) for v in values.values()) for values in found):
        raise ValueError(f"{_CONDITIONS} holds no conditions")
    return [(archive.read(_condition_file(index)), values) for index, values in enumerate(found)]


def _condition_file(index: int) -> str:
    return f"condition{index}.onnx"
