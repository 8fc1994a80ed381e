"""AIMET's encodings format 2.0.0: one list in the words of ONNX's QuantizeLinear, in the layout of the ONNX model."""

from __future__ import annotations

import re
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isobit.encodings.encoding import Encoding, Encodings
from isobit.encodings.quant_spec import Granularity, Lpbq, PerBlock, PerChannel, PerTensor, QuantSpec
from isobit.errors import EncodingError
from isobit.formats.aimet import EncodingsInFile, claims, document, entry_name, plain, producer, writable, write_text
from isobit.formats.format import EncodingsFormat, FileContent
from isobit.formats.json_file import Fields
from isobit.formats.names import Names, Place
from isobit.formats.native_grid import canonical_encoding, native_form

VERSION = "2.0.0"

_FIELDS = (
    "name", "output_dtype", "y_scale", "y_zero_point", "axis", "block_size",
    "per_block_int_scale", "per_channel_float_scale",
)  # fmt: skip
_FLOATS = {"float8e4m3fn": "float8e4m3", "float8e5m2": "float8e5m2"}
_INTEGER = re.compile(r"(u?)int([0-9]{1,2})")

_KINDS_GUESSED = (
    "the file does not say what is a weight: without the model, entries with an axis and of 32 bits are taken for one"
)


class AimetV2(EncodingsFormat):
    """``{"version": "2.0.0", "encodings": [...]}``."""

    name = "aimet-2.0.0"
    suffix = ".encodings"
    uses_names = True
    omitted_types = ("float16", "bfloat16")  # readers take a tensor without an entry for a float one

    def recognises(self, content: FileContent) -> bool:
        """Whether it is a file of a version 2."""
        return claims(content, version="2.")

    def read(self, path: str | PathLike[str], names: Names | None = None) -> Encodings:
        """Read a file. Axes are those of the ONNX model; without `names` they stay so."""
        top = document(path, VERSION)
        in_file = EncodingsInFile(names)
        if names is None:
            in_file.note(_KINDS_GUESSED)
        for number, entry in enumerate(top.array("encodings")):
            fields, name = entry_name(entry, f"{top.at}: encodings[{number}]")
            in_file.add(fields, name, None, _Entry(fields).encoding)
        return in_file.result()

    def write(self, encodings: Encodings, path: str | PathLike[str], names: Names | None = None) -> list[str]:
        """Write a file, int32 biases with it. 16-bit floats are what is not in the file."""
        placed, notes = writable(encodings, names, self, (*self.omitted_types, *_FLOATS.values()))
        entries = []
        floats = []
        for place, encoding in placed:
            if encoding.spec.type_name in self.omitted_types:
                floats.append(place.name)
            else:
                entries.append(_entry(place, encoding))
        if floats:
            notes.append(
                f"{self.name} has no 16-bit floats: {', '.join(floats[:5])} are left out, as float tensors are"
            )
        write_text(path, {"version": VERSION, "producer": producer(), "encodings": entries})
        return notes


class _Entry:
    """One entry that is being read."""

    def __init__(self, fields: Fields) -> None:
        self.fields = fields

    def encoding(self, place: Place | None) -> Encoding:
        """The encoding of the entry on a place of the model."""
        self.fields.only(_FIELDS)
        granularity, axis = self._granularity(place)
        scale, parts = self._scales()
        spec, zero_point = self._grid(granularity, scale.shape)
        if isinstance(granularity, PerTensor):
            if scale.size != 1 or scale.ndim > 1:
                raise self.fields.error("axis", f"this field is missing, for there are {scale.size} scales")
            return Encoding(spec, scale.reshape(()), zero_point.reshape(()))
        if place is None:
            return Encoding(spec, scale, zero_point, axis, *(parts or ()))
        if not place.is_constant:
            raise self.fields.error("axis", "an activation has one scale")
        if axis is None or axis >= len(place.native):
            raise self.fields.error("axis", f"{axis} does not exist in {place.name!r} of shape {place.native}")
        self._check_channels(place, scale, axis)
        return canonical_encoding(
            spec, scale, zero_point, axis, place.native, place.layout, channel_axis=place.channel_axis, parts=parts
        )

    def _granularity(self, place: Place | None) -> tuple[Granularity, int | None]:
        fields = self.fields
        if fields.data.get("axis") is None:
            for key in ("block_size", "per_block_int_scale"):
                if fields.data.get(key) is not None:
                    raise fields.error("axis", f"this field is missing, which {key} needs")
            return PerTensor(), None
        rank = len(place.native) if place is not None else 0
        axis = fields.whole("axis", -rank, 63)
        axis = axis + rank if axis < 0 else axis
        if fields.data.get("block_size") is None:
            return PerChannel(), axis
        size = fields.whole("block_size", 1)
        return (Lpbq(size) if "per_block_int_scale" in fields else PerBlock(size)), axis

    def _scales(self) -> tuple[NDArray[np.float32], tuple[NDArray[np.int32], NDArray[np.float32]] | None]:
        """The scales, and LPBQ's two parts of them."""
        fields = self.fields
        lpbq = ("per_block_int_scale", "per_channel_float_scale")
        if not any(key in fields for key in lpbq):
            return fields.numbers("y_scale"), None
        if "y_scale" in fields:
            raise fields.error("y_scale", "an lpbq entry has its scale in two parts, not here")
        if fields.data.get("block_size") is None:
            raise fields.error("block_size", "this field is missing")
        multiplier, channel = fields.wholes(lpbq[0], floats=True), fields.numbers(lpbq[1])
        shapes_fit = multiplier.ndim == channel.ndim and all(
            n in (1, m) for n, m in zip(channel.shape, multiplier.shape, strict=True)
        )
        if not shapes_fit:
            raise fields.error(lpbq[1], f"shape {channel.shape} does not fit multipliers of shape {multiplier.shape}")
        return multiplier.astype(np.float32) * channel, (multiplier, channel)

    def _grid(self, granularity: Granularity, shape: tuple[int, ...]) -> tuple[QuantSpec, NDArray[np.int32]]:
        fields = self.fields
        type_name, has_zero = fields.text("output_dtype"), fields.data.get("y_zero_point") is not None
        zero = fields.wholes("y_zero_point", floats=True) if has_zero else np.zeros((), np.int32)
        if zero.shape not in (shape, ()):
            raise fields.error("y_zero_point", f"shape {zero.shape} does not fit scales of shape {shape}")
        zero = np.broadcast_to(zero, shape)
        if type_name in _FLOATS:
            return QuantSpec(_FLOATS[type_name], 8, granularity=granularity), zero
        match = _INTEGER.fullmatch(type_name)
        if match is None:
            known_types = "intN, uintN, " + ", ".join(_FLOATS)
            raise fields.error("output_dtype", f"unknown type {type_name[:40]!r}; known are {known_types}")
        dtype, bits = f"{match[1]}int", int(match[2])
        if bits == 32 and (dtype == "uint" or np.any(zero != 0)):
            raise fields.error("output_dtype", "a grid of 32 bits is that of a bias: signed, with zero point 0")
        symmetric = dtype == "int" and not np.any(zero)
        return QuantSpec(dtype, bits, symmetric, granularity=granularity), zero

    def _check_channels(self, place: Place, scale: NDArray[np.float32], axis: int) -> None:
        if self.fields.data.get("block_size") is None:
            count = place.native[axis]
            if scale.ndim != 1 or scale.size != count:
                problem = (
                    f"scales of shape {scale.shape} do not fit the {count} channels of {place.name!r} on axis {axis}"
                )
                raise self.fields.error("y_scale", problem)
            return
        size = self.fields.whole("block_size", 1)
        if (
            place.native[axis] % size
            or scale.ndim != len(place.native)
            or scale.shape[axis] * size != place.native[axis]
        ):
            problem = (
                f"blocks of {size} on axis {axis} of {place.name!r} {place.native} do not fit scales {scale.shape}"
            )
            raise self.fields.error("block_size", problem)


def _entry(place: Place, encoding: Encoding) -> dict[str, Any]:
    spec, granularity = encoding.spec, encoding.spec.granularity
    kinds = {dtype: onnx for onnx, dtype in _FLOATS.items()}
    entry: dict[str, Any] = {"name": place.name, "output_dtype": kinds.get(spec.dtype, spec.type_name)}
    if isinstance(granularity, PerTensor):
        entry["y_scale"] = float(encoding.scale)
        if int(encoding.zero_point):
            entry["y_zero_point"] = int(encoding.zero_point)
        return entry
    shape = place.native or None
    if shape is None:  # without the model the shape is not known: the scales are written as they are
        axis, index = encoding.axis, np.arange(encoding.scale.size).reshape(encoding.scale.shape)
        block = granularity.size if isinstance(granularity, PerBlock | Lpbq) else None
    else:
        form = native_form(encoding, shape, place.layout)
        axis, block = form.axis, form.block_size
        index = form.index if block is None else _joined(form.index, axis)
    if axis is not None:
        entry["axis"] = axis
    if block is not None:
        entry["block_size"] = block
    if isinstance(granularity, Lpbq):
        return entry | _lpbq_parts(place, encoding, index)
    entry["y_scale"] = plain(encoding.scale.reshape(-1)[index])
    zero_point = encoding.zero_point.reshape(-1)[index]
    if np.any(zero_point):
        entry["y_zero_point"] = plain(zero_point)
    return entry


def _lpbq_parts(place: Place, encoding: Encoding, index: NDArray[np.int64]) -> dict[str, Any]:
    """The multipliers in the native layout, and the channel scales with the axes that they do not vary along as one."""
    if encoding.multiplier is None or encoding.channel_scale is None:
        raise EncodingError(f"{place.name!r}: an lpbq encoding without its multipliers cannot be written")
    channels = np.arange(encoding.channel_scale.size).reshape(encoding.channel_scale.shape)
    marks = _joined(np.broadcast_to(channels, encoding.scale.shape).reshape(-1)[index], None)
    channel_scale = encoding.channel_scale.reshape(-1)[marks]
    return {
        "per_block_int_scale": plain(encoding.multiplier.reshape(-1)[index]),
        "per_channel_float_scale": plain(channel_scale),
    }


def _joined(index: NDArray[np.int64], kept_axis: int | None) -> NDArray[np.int64]:
    """Without the copies along axes that all have the same scales, as AIMET writes blocks; ONNX has them in full."""
    for axis in range(index.ndim):
        if axis != kept_axis and np.all(index == index.take([0], axis)):
            index = index.take([0], axis)
    return index
