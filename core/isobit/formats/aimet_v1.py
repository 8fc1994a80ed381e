"""AIMET's encodings format 1.0.0, its default: entries by granularity, no axes, blocks channel by channel."""

from __future__ import annotations

import math
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isobit.encodings.encoding import Encoding, Encodings
from isobit.encodings.quant_spec import Granularity, Lpbq, PerBlock, PerChannel, PerTensor, QuantSpec
from isobit.errors import EncodingError
from isobit.formats.aimet import (
    AXIS_GUESSED,
    EncodingsInFile,
    claims,
    document,
    entry_name,
    integer_encoding,
    integer_spec,
    offsets_of,
    plain,
    producer,
    writable,
    write_text,
)
from isobit.formats.format import EncodingsFormat, FileContent
from isobit.formats.json_file import Fields
from isobit.formats.names import Names, Place
from isobit.formats.native_grid import block_count

VERSION = "1.0.0"

_PARTS = {"activation_encodings": "tensor", "param_encodings": "weight"}
_TYPES = ("PER_TENSOR", "PER_CHANNEL", "PER_BLOCK", "LPBQ", "VECTOR")
_COMMON = ("name", "enc_type", "dtype", "bw", "is_sym", "scale", "offset", "zero_point_shift")
_FIELDS = {
    "PER_TENSOR": _COMMON,
    "PER_CHANNEL": _COMMON,
    "PER_BLOCK": (*_COMMON, "block_size"),
    "LPBQ": (*_COMMON, "block_size", "compressed_bw", "per_block_int_scale"),
}


class AimetV1(EncodingsFormat):
    """``{"version": "1.0.0", "activation_encodings": [...], "param_encodings": [...]}``."""

    name = "aimet-1.0.0"
    suffix = ".encodings"
    uses_names = True
    omitted_types = ("int32",)  # AIMET computes the scales of biases itself
    omits_moved_tensors = True  # it has no quantizer there

    def recognises(self, content: FileContent) -> bool:
        """Whether it is a file of a version 1."""
        return claims(content, version="1.")

    def read(self, path: str | PathLike[str], names: Names | None = None) -> Encodings:
        """Read a file; blocks need the model, for the file does not say its shapes."""
        top = document(path, VERSION)
        in_file = EncodingsInFile(names)
        for part, kind in _PARTS.items():
            for number, entry in enumerate(top.array(part)):
                fields, name = entry_name(entry, f"{top.at}: {part}[{number}]")
                in_file.add(fields, name, kind, _Entry(fields, in_file).encoding)
        return in_file.result()

    def write(self, encodings: Encodings, path: str | PathLike[str], names: Names | None = None) -> list[str]:
        """Write a file. int32 biases are left out, as AIMET does: it computes their scales itself."""
        placed, notes = writable(encodings, names, self, ("float16",))
        parts: dict[str, list[dict[str, Any]]] = {part: [] for part in _PARTS}
        for place, encoding in placed:
            part = "param_encodings" if place.is_constant else "activation_encodings"
            parts[part].append(_entry(place, encoding))
        write_text(path, {"version": VERSION, "producer": producer(), **parts, "quantizer_args": {}})
        return notes


class _Entry:
    """One entry that is being read."""

    def __init__(self, fields: Fields, in_file: EncodingsInFile) -> None:
        self.fields = fields
        self.in_file = in_file

    def encoding(self, place: Place | None) -> Encoding:
        """The encoding of the entry on a place of the model."""
        fields = self.fields
        kind = fields.text("enc_type", _TYPES)
        if kind == "VECTOR":
            raise fields.error("enc_type", "vector quantization is not supported")
        fields.only(_FIELDS[kind])
        if "zero_point_shift" in fields and np.any(fields.numbers("zero_point_shift") != 0):
            raise fields.error("zero_point_shift", "grids that are shifted by half a step are not supported")
        if fields.text("dtype", ("INT", "FLOAT")) == "FLOAT":
            if fields.whole("bw", 16, 32) != 16 or kind != "PER_TENSOR":
                raise fields.error("bw", "floats have 16 bits and are per tensor")
            return Encoding.of("float16", 1.0)
        return self._integers(kind, place)

    def _integers(self, kind: str, place: Place | None) -> Encoding:
        fields = self.fields
        symmetric, scale = fields.flag("is_sym"), self._list("scale", fields.numbers("scale"))
        offset = self._list("offset", fields.wholes("offset", floats=True))
        if offset.size not in (1, scale.size):
            raise fields.error("offset", f"{offset.size} offsets do not fit {scale.size} scales")
        offset = np.broadcast_to(offset, scale.shape)
        if kind == "LPBQ":
            return self._lpbq(place, symmetric, scale, offset)
        bits = fields.whole("bw", 2, 32)
        if kind == "PER_TENSOR":
            if scale.size != 1:
                raise fields.error("scale", f"a per-tensor entry has one scale, found {scale.size}")
            spec = integer_spec(bits, symmetric, offset, PerTensor())
            return integer_encoding(spec, scale.reshape(()), offset.reshape(()), None)
        if kind == "PER_CHANNEL":
            spec = integer_spec(bits, symmetric, offset, PerChannel())
            if place is None:
                self.in_file.note(AXIS_GUESSED.format(repr(fields.data["name"])))
            return integer_encoding(spec, scale, offset, 0 if place is None else self._channels(place, scale.size))
        shape, axis = self._blocks(place, PerBlock(fields.whole("block_size", 1)), scale.size)
        spec = integer_spec(bits, symmetric, offset, PerBlock(fields.whole("block_size", 1)))
        return integer_encoding(spec, scale.reshape(shape), offset.reshape(shape), axis)

    def _lpbq(
        self, place: Place | None, symmetric: bool, scale: NDArray[np.float32], offset: NDArray[np.int32]
    ) -> Encoding:
        fields = self.fields
        bits = fields.whole("compressed_bw", 2, 16)
        whole_bits = fields.whole("bw", bits, 32)
        if not symmetric or np.any(offset != -(1 << (whole_bits - 1))):
            raise fields.error("offset", f"lpbq is symmetric: is_sym true and offsets of {-(1 << (whole_bits - 1))}")
        granularity = Lpbq(fields.whole("block_size", 1))
        multiplier = self._list("per_block_int_scale", fields.wholes("per_block_int_scale", floats=True))
        if np.any(multiplier < 1) or np.any(multiplier > 1 << (whole_bits - bits)):
            raise fields.error("per_block_int_scale", f"must lie in [1, {1 << (whole_bits - bits)}]")
        shape, axis = self._blocks(place, granularity, multiplier.size)
        channels = tuple(1 if i >= axis else n for i, n in enumerate(shape))
        if scale.size != math.prod(channels):
            raise fields.error("scale", f"{scale.size} channel scales do not fit {math.prod(channels)} channels")
        parts = multiplier.reshape(shape), scale.reshape(channels)
        effective = parts[0].astype(np.float32) * parts[1]
        spec = QuantSpec("int", bits, granularity=granularity)
        return Encoding(spec, effective, np.zeros(shape, np.int32), axis, *parts)

    def _list(self, key: str, values: NDArray[Any]) -> NDArray[Any]:
        if values.ndim > 1:
            raise self.fields.error(key, "must be a list of numbers")
        return values.reshape(-1)

    def _channels(self, place: Place, count: int) -> int:
        """The channel axis, whose length is checked."""
        if not place.is_constant:
            raise self.fields.error("enc_type", "an activation has one scale, not one a channel")
        channels = place.canonical[place.channel_axis] if place.canonical else 1
        if count != channels:
            raise self.fields.error("scale", f"{count} scales do not fit the {channels} channels of {place.name!r}")
        return place.channel_axis

    def _blocks(self, place: Place | None, granularity: PerBlock | Lpbq, count: int) -> tuple[tuple[int, ...], int]:
        """The shape of block scales and their axis."""
        fields = self.fields
        if place is None:
            raise fields.error("block_size", "blocks need the model: the file does not say the shape of the weight")
        if place.block_axis is None:
            raise fields.error("enc_type", f"{place.name!r} has no input channels to be in blocks")
        length = place.canonical[place.block_axis]
        blocks = block_count(QuantSpec("int", 8, granularity=granularity), length, f"{fields.at}: block_size")
        shape = block_shape(place, blocks)
        if math.prod(shape) != count:
            key = "per_block_int_scale" if isinstance(granularity, Lpbq) else "scale"
            raise fields.error(key, f"{count} block scales do not fit {math.prod(shape)} blocks of {place.name!r}")
        return shape, place.block_axis


def block_shape(place: Place, blocks: int) -> tuple[int, ...]:
    """The shape of block scales that are one for all that follows the block axis."""
    axis = place.block_axis or 0
    return tuple(n if i < axis else blocks if i == axis else 1 for i, n in enumerate(place.canonical))


def _entry(place: Place, encoding: Encoding) -> dict[str, Any]:
    spec, granularity = encoding.spec, encoding.spec.granularity
    entry: dict[str, Any] = {"name": place.name, "enc_type": _type(granularity)}
    if not spec.is_integer:
        return {**entry, "dtype": "FLOAT", "bw": 16}
    _check(place, encoding)
    entry |= {"dtype": "INT", "bw": spec.bits, "is_sym": spec.symmetric}
    if isinstance(granularity, PerBlock | Lpbq):
        entry["block_size"] = granularity.size
    if isinstance(granularity, Lpbq):
        assert encoding.multiplier is not None  # checked
        assert encoding.channel_scale is not None
        entry |= {"bw": 2 * spec.bits, "compressed_bw": spec.bits}
        entry["scale"] = plain(encoding.channel_scale.reshape(-1))
        entry["offset"] = [-(1 << (2 * spec.bits - 1))] * len(entry["scale"])
        entry["per_block_int_scale"] = plain(encoding.multiplier.reshape(-1))
        return entry
    entry["scale"] = plain(encoding.scale.reshape(-1))
    entry["offset"] = plain(offsets_of(encoding).reshape(-1))
    return entry


def _type(granularity: Granularity | None) -> str:
    if isinstance(granularity, PerChannel):
        return "PER_CHANNEL"
    if isinstance(granularity, PerBlock):
        return "PER_BLOCK"
    return "LPBQ" if isinstance(granularity, Lpbq) else "PER_TENSOR"


def _check(place: Place, encoding: Encoding) -> None:
    """Refuse what an entry cannot say: another axis than the channels', blocks that are not one a run of inputs."""
    granularity = encoding.spec.granularity
    if isinstance(granularity, PerChannel) and place.canonical and encoding.axis != place.channel_axis:
        raise EncodingError(f"{place.name!r}: {AimetV1.name} has no axis but that of the channels")
    if isinstance(granularity, Lpbq) and (encoding.multiplier is None or encoding.channel_scale is None):
        raise EncodingError(f"{place.name!r}: an lpbq encoding without its multipliers cannot be written")
    if isinstance(granularity, PerBlock | Lpbq) and place.canonical:
        blocks = block_shape(place, place.canonical[place.block_axis or 0] // granularity.size)
        if encoding.axis != place.block_axis or encoding.scale.shape != blocks:
            raise EncodingError(f"{place.name!r}: {AimetV1.name} has one scale for each run of input channels alone")
        channel_shape = tuple(1 if i >= (place.block_axis or 0) else n for i, n in enumerate(blocks))
        if encoding.channel_scale is not None and encoding.channel_scale.shape != channel_shape:
            raise EncodingError(f"{place.name!r}: {AimetV1.name} has one float scale for each output channel")
