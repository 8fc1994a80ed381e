"""AIMET's encodings format 0.6.1: a list of per-tensor grids for each name, or one for each channel; no blocks.

Files of aimet-torch keyed by module (``_torch.encodings``) are read too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from os import PathLike
from typing import Any

import numpy as np

from isobit.encodings.encoding import Encoding, Encodings
from isobit.encodings.quant_spec import Lpbq, PerBlock, PerChannel, PerTensor
from isobit.errors import EncodingError
from isobit.formats.aimet import (
    AXIS_GUESSED,
    EncodingsInFile,
    claims,
    document,
    integer_encoding,
    integer_spec,
    offsets_of,
    producer,
    writable,
    write_text,
)
from isobit.formats.format import EncodingsFormat, FileContent
from isobit.formats.json_file import Fields
from isobit.formats.names import Names, Place

VERSION = "0.6.1"

_FIELDS = ("bitwidth", "dtype", "is_symmetric", "min", "max", "scale", "offset")


class AimetV061(EncodingsFormat):
    """``{"version": "0.6.1", "activation_encodings": {name: [...]}, "param_encodings": {name: [...]}}``."""

    name = "aimet-0.6.1"
    suffix = ".encodings"
    uses_names = True
    omitted_types = ("int32",)  # AIMET computes the scales of biases itself
    omits_moved_tensors = True  # it has no quantizer there

    def recognises(self, content: FileContent) -> bool:
        """Whether it is a file of a version 0."""
        return claims(content, version="0.")

    def read(self, path: str | PathLike[str], names: Names | None = None) -> Encodings:
        """Read a file, by ONNX names or by the modules of PyTorch."""
        top = document(path, VERSION)
        in_file = EncodingsInFile(names)
        for at, name, entries in _activations(top, names):
            in_file.add(Fields({}, at), name, "tensor", _Entries(entries, at, name, in_file).encoding)
        params = Fields(top.require("param_encodings"), f"{top.at}: param_encodings")
        for name, entries in params.data.items():
            at = f"{params.at} ({name})"
            in_file.add(Fields({}, at), name, "weight", _Entries(entries, at, name, in_file).encoding)
        return in_file.result()

    def write(self, encodings: Encodings, path: str | PathLike[str], names: Names | None = None) -> list[str]:
        """Write a file. int32 biases are left out, as AIMET does."""
        placed, notes = writable(encodings, names, self, ("float16",))
        parts: dict[str, dict[str, Any]] = {"activation_encodings": {}, "param_encodings": {}}
        for place, encoding in placed:
            part = "param_encodings" if place.is_constant else "activation_encodings"
            parts[part][place.name] = _entries(place, encoding)
        write_text(path, {"version": VERSION, "producer": producer(), **parts, "excluded_layers": []})
        return notes


def _activations(top: Fields, names: Names | None) -> Iterator[tuple[str, str, Any]]:
    """Where an entry stands, its tensor's name, and its list; those keyed by module by the tensors they mean."""
    part = Fields(top.require("activation_encodings"), f"{top.at}: activation_encodings")
    for name, value in part.data.items():
        at = f"{part.at} ({name})"
        if not isinstance(value, Mapping):
            yield at, name, value
            continue
        module = Fields(value, at)
        module.only(("input", "output"))
        for side in module.data:
            for number, entry in Fields(module.require(side), f"{at}: {side}").data.items():
                yield f"{at}: {side}: {number}", _tensor_of(name, side, number, names, at), _listed(entry)


def _listed(entry: Any) -> Any:
    return [entry] if isinstance(entry, Mapping) else entry


def _tensor_of(module: str, side: str, number: str, names: Names | None, at: str) -> str:
    """The tensor at an input or output of a module, whose name is that of the node."""
    if not (number.isascii() and number.isdigit() and len(number) < 6):
        raise EncodingError(f"{at}: {side}: {number}: must be a whole number from 0")
    if names is None:
        raise EncodingError(f"{at}: {side}: entries by module need the model")
    node = next((node for node in names.graph.nodes if node.name == module), None)
    if node is None:
        return f"{module}:{side}{number}"  # no such name is in the model: it will be listed as unmapped
    tensors = [n for n in (node.inputs if side == "input" else node.outputs) if n in names.graph.tensors and n]
    if int(number) >= len(tensors):
        raise EncodingError(f"{at}: {side}: {number}: the module has {len(tensors)} such tensors")
    return tensors[int(number)]


class _Entries:
    """The list of one name that is being read."""

    def __init__(self, entries: Any, at: str, name: str, in_file: EncodingsInFile) -> None:
        if not isinstance(entries, list) or not entries:
            raise EncodingError(f"{at}: must be a list of at least one object")
        self.all = [Fields(entry, f"{at}[{number}]") for number, entry in enumerate(entries)]
        self.at, self.name, self.in_file = at, name, in_file

    def encoding(self, place: Place | None) -> Encoding:
        """The encoding of the list on a place of the model."""
        first = self.all[0]
        for fields in self.all:
            fields.only(_FIELDS)
        kind, bits = first.text("dtype", ("int", "float")), first.whole("bitwidth", 2, 32)
        if kind == "float":
            if bits != 16 or len(self.all) != 1:
                raise first.error("bitwidth", "floats have 16 bits and are per tensor")
            return Encoding.of("float16", 1.0)
        symmetric = first.flag("is_symmetric")
        for fields in self.all[1:]:
            own_format = (
                fields.text("dtype", ("int", "float")),
                fields.whole("bitwidth", 2, 32),
                fields.flag("is_symmetric"),
            )
            if own_format != (kind, bits, symmetric):
                raise fields.error("bitwidth", "the channels of one tensor have one format, and these differ")
        scale = np.asarray([self._one(fields, "scale") for fields in self.all], np.float32)
        offset = np.asarray([self._one(fields, "offset") for fields in self.all], np.int32)
        self._check_ranges(scale, offset, bits)
        if len(self.all) == 1:
            return integer_encoding(
                integer_spec(bits, symmetric, offset, PerTensor()), scale.reshape(()), offset.reshape(()), None
            )
        axis = self._axis(place)
        return integer_encoding(integer_spec(bits, symmetric, offset, PerChannel()), scale, offset, axis)

    def _one(self, fields: Fields, key: str) -> Any:
        values = fields.numbers(key) if key == "scale" else fields.wholes(key, floats=True)
        if values.ndim:
            raise fields.error(key, "must be one number")
        return values

    def _check_ranges(self, scale: Any, offset: Any, bits: int) -> None:
        """Refuse a list whose min and max belong to another grid; AIMET's own have rounding errors."""
        for fields, s, o in zip(self.all, scale.astype(np.float64), offset.astype(np.float64), strict=True):
            for key, level in (("min", o), ("max", o + (1 << bits) - 1)):
                if key not in fields:
                    continue
                stated = float(self._number(fields, key))
                if abs(stated - level * s) > 1.01 * s:  # strict grids of AIMET end one level lower
                    raise fields.error(key, f"{stated:.6g} does not fit scale and offset, which say {level * s:.6g}")

    def _number(self, fields: Fields, key: str) -> Any:
        values = fields.numbers(key)
        if values.ndim or not np.isfinite(values):
            raise fields.error(key, "must be one finite number")
        return values

    def _axis(self, place: Place | None) -> int:
        if place is None:
            self.in_file.note(AXIS_GUESSED.format(repr(self.name)))
            return 0
        if not place.is_constant:
            raise EncodingError(f"{self.at}: an activation has one entry, found {len(self.all)}")
        channels = place.canonical[place.channel_axis] if place.canonical else 1
        if channels != len(self.all):
            raise EncodingError(
                f"{self.at}: {len(self.all)} entries do not fit the {channels} channels of {place.name!r} "
                "(the format has no blocks)"
            )
        return place.channel_axis


def _entries(place: Place, encoding: Encoding) -> list[dict[str, Any]]:
    spec = encoding.spec
    if isinstance(spec.granularity, PerBlock | Lpbq):
        raise EncodingError(f"{place.name!r}: {AimetV061.name} has no blocks; write aimet-1.0.0 or aimet-2.0.0")
    if not spec.is_integer:
        return [{"bitwidth": 16, "dtype": "float"}]
    if encoding.axis is not None and place.canonical and encoding.axis != place.channel_axis:
        raise EncodingError(f"{place.name!r}: {AimetV061.name} has no axis but that of the channels")
    scales, offsets = encoding.scale.reshape(-1).astype(float), offsets_of(encoding).reshape(-1)
    steps = (1 << spec.bits) - 1
    return [
        {
            "bitwidth": spec.bits,
            "dtype": "int",
            "is_symmetric": str(spec.symmetric),
            "min": float(scale * offset),
            "max": float(scale * (offset + steps)),
            "scale": float(scale),
            "offset": int(offset),
        }
        for scale, offset in zip(scales, offsets, strict=True)
    ]
