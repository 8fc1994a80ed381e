"""Reading a QDQ model of any tool back: which values are quantized, for whom, and on which grid."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
from numpy.typing import NDArray

from isobit.backend.quiet_loggers import quiet_loggers
from isobit.encodings import Encoding, Encodings, PerTensor, QuantSpec
from isobit.encodings.same_levels import same_levels
from isobit.errors import EncodingError, IsobitError, ModelError
from isobit.files import is_file
from isobit.formats import Names, Place
from isobit.formats.native_grid import canonical_encoding
from isobit.graph import Site, Tensor, Weight
from isobit_onnx.qdq.file_grid import TYPES, FileGrid, by_row, file_grid
from isobit_onnx.qdq.float_weights import MANTISSAS
from isobit_onnx.qdq.folded_weights import folded_weight
from isobit_onnx.qdq.grids import FORMAT
from isobit_onnx.qdq.table_lookups import BY_ROW, GRANULARITY, behind_reshapes, lookup_of
from isobit_onnx.read.checks.tensors import check_tensors
from isobit_onnx.read.error_text import first_line
from isobit_onnx.read.inference.map_types import load_file
from isobit_onnx.translate.translate import readers_through_views

#: How tools call the integers of a constant; what is left is the constant's name.
_ENDINGS = ("_quantized", "_QuantizeLinear_Output", "_q", "_float16", "_bfloat16")
#: The integers of one constant for another reader.
_ANOTHER_READER = re.compile(r"_quantized_\d+$")


@dataclass(frozen=True, eq=False)
class QuantizedValue:
    """A value that is quantized: its float name, its shape if it is a constant, and who reads it so."""

    name: str
    grid: FileGrid
    shape: tuple[int, ...] | None = None  # of a constant
    readers: tuple[tuple[str, int], ...] = ()
    for_some_readers: bool = False  # others read the value in float
    at: str = field(default="")


def read_qdq(path: str | PathLike[str], names: Names | None) -> Encodings:
    """Encodings of a QDQ model, by the sites of a model or, without one, by the names in the file.

    Raises EncodingError naming the file and the tensor.
    """
    encodings: dict[Site, Encoding] = {}
    unmapped: dict[str, None] = {}
    notes: dict[str, None] = dict.fromkeys(names.notes) if names is not None else {}
    entries = quantized_values(path)
    if not entries:
        raise EncodingError(
            f"{fspath(path)}: the model holds no QuantizeLinear or DequantizeLinear: it is not quantized"
        )
    for entry in _grids_by_reader(entries):
        try:
            for site, encoding in _placed(entry, names):
                if site is None:
                    unmapped[entry.name] = None
                elif same_levels(encodings.setdefault(site, encoding), encoding.spec) != encoding:
                    notes[f"{entry.name!r} is quantized twice: the first grid is taken"] = None
        except IsobitError as error:
            raise EncodingError(f"{entry.at}: {error}") from error
    return Encodings(encodings, notes=notes, unmapped=unmapped)


def _grids_by_reader(entries: Sequence[QuantizedValue]) -> Iterator[QuantizedValue]:
    """The entries; where a value has several grids, each is for its own readers alone."""
    known = {entry.name for entry in entries}
    grids: dict[str, set[tuple[QuantSpec, bytes, bytes]]] = {}
    for entry in entries:
        grids.setdefault(_whole(entry), set()).add(_grid_key(entry.grid))
    for entry in entries:
        name = _whole(entry)
        entry = replace(entry, name=name if name in known else entry.name)
        yield replace(entry, for_some_readers=True) if len(grids[name]) > 1 else entry


def _whole(entry: QuantizedValue) -> str:
    """The name of the value that an entry is for all readers or for one."""
    return entry.name if entry.shape is None else _ANOTHER_READER.sub("", entry.name)


def _grid_key(grid: FileGrid) -> tuple[QuantSpec, bytes, bytes]:
    return grid.spec, grid.scale.tobytes(), grid.zero_point.tobytes()


def quantized_values(path: str | PathLike[str]) -> list[QuantizedValue]:
    """Every quantized value of a QDQ model file. Raises EncodingError."""
    where = fspath(path)
    if not is_file(path):
        raise EncodingError(f"cannot read encodings file {where}: no such file")
    try:
        model = load_file(Path(path))
        check_tensors(model, where)
        with quiet_loggers("onnx_ir", "onnxscript"):
            passes.InlinePass()(model)
            passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    except ModelError as error:
        raise EncodingError(str(error)) from error
    except Exception as error:  # protobuf and onnx-ir raise many kinds
        raise EncodingError(f"{where}: not an ONNX model, or truncated: {first_line(error)}") from error
    try:
        return list(_QdqReader(model, where).all())
    except (TypeError, ValueError) as error:  # an attribute of another type, scales of another shape
        raise EncodingError(f"{where}: its quantizers cannot be read: {first_line(error)}") from error


class _QdqReader:
    def __init__(self, model: ir.Model, where: str) -> None:
        self.graph, self.where = model.graph, where

    def all(self) -> Iterator[QuantizedValue]:
        for node in self.graph:
            if node.op_type in ("DequantizeLinear", "QuantizeLinear", "Cast", "Clip", "Max"):
                self._check_operands(node)
            if node.domain in ("", "ai.onnx", "com.microsoft") and node.op_type == "DequantizeLinear":
                yield from self._dequantized(node)
            elif node.op_type == "Cast" and not node.domain:
                yield from self._cast(node)
            elif node.op_type == "Mul":
                yield from self._folded(node)

    def _check_operands(self, node: ir.Node) -> None:
        """Raise EncodingError for a node without an input, an output or the attribute that its reading needs."""
        if not node.inputs or not node.outputs or (node.op_type == "Cast" and "to" not in node.attributes):
            raise EncodingError(
                f"{self.where}: {node.name or node.op_type}: {node.op_type} lacks an operand or attribute"
            )

    def _dequantized(self, node: ir.Node) -> Iterator[QuantizedValue]:
        source = node.inputs[0]
        at = f"{self.where}: {node.name or node.outputs[0].name}"
        if source is None:
            raise EncodingError(f"{at}: DequantizeLinear has no input")
        quantizer = source.producer()
        lookup = lookup_of(node)
        if lookup is not None:
            source, quantizer = lookup.table, lookup.table.producer()
        stored = behind_reshapes(source)
        if stored is not source and stored.const_value is not None:  # a constant's integers for another reader
            source.const_value, quantizer = stored.const_value, None
        if quantizer is not None and quantizer.op_type != "QuantizeLinear":
            return  # integers computed inside the model: no quantizer of a float tensor
        if (source.name or "").endswith(MANTISSAS):
            return  # a float bias, written so that onnxruntime leaves the weight beside it alone
        grid = self._grid(node, source, at)
        if lookup is not None:
            grid = by_row(grid) if node.metadata_props.get(GRANULARITY) == BY_ROW else grid
            yield self._of_constant(source, grid, node, [(lookup.gather, 0)], at)
        elif quantizer is not None:
            value = quantizer.inputs[0]
            if value is None:
                raise EncodingError(f"{at}: QuantizeLinear has no input")
            yield self._of_value(value, grid, node, quantizer, at)
        elif source.const_value is not None:
            yield self._of_constant(source, grid, node, readers_through_views(node.outputs[0]), at)

    def _folded(self, node: ir.Node) -> Iterator[QuantizedValue]:
        """A weight that is stored as integers and becomes floats when the file is loaded."""
        found = folded_weight(node)
        stored = None if found is None else behind_reshapes(found.levels).const_value
        if found is None or stored is None or stored.dtype not in TYPES:
            return
        at = f"{self.where}: {node.name or node.outputs[0].name}"
        found.levels.const_value = stored
        grid = file_grid(stored.dtype, found.scale, found.zero_point, found.axis, found.block)
        yield self._of_constant(found.levels, grid, node, readers_through_views(found.result), at)

    def _cast(self, node: ir.Node) -> Iterator[QuantizedValue]:
        """A pair of casts to a smaller float and back, or the cast of a stored smaller float."""
        source = node.inputs[0]
        if source is None or ir.DataType(node.attributes["to"].as_int()) != ir.DataType.FLOAT:
            return
        producer, constant = source.producer(), source.const_value
        kind = constant.dtype if constant is not None else None
        if producer is not None and producer.op_type == "Cast" and producer.inputs[0] is not None:
            kind = ir.DataType(producer.attributes["to"].as_int())
        if kind not in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
            return
        at = f"{self.where}: {node.name or node.outputs[0].name}"
        spec = QuantSpec.parse(f"{TYPES[kind]} per-tensor")
        grid = FileGrid(spec, np.asarray(1, np.float32), np.asarray(0, np.int32))
        if constant is not None:
            yield self._of_constant(source, grid, node, readers_through_views(node.outputs[0]), at)
        elif producer is not None and producer.inputs[0] is not None:
            value = producer.inputs[0]
            if value.dtype in (None, ir.DataType.FLOAT):
                yield self._of_value(value, grid, node, producer, at)

    def _of_value(self, value: ir.Value, grid: FileGrid, node: ir.Node, quantizer: ir.Node, at: str) -> QuantizedValue:
        if value.const_value is not None and not value.is_graph_input():  # a float constant that is rounded when run
            return self._of_constant(value, grid, node, readers_through_views(node.outputs[0]), at)
        value, grid, entered = self._behind_clip(value, grid, quantizer)
        ends = (use.node.outputs[0] for use in quantizer.outputs[0].uses())
        name = next((end.name for end in ends if end.is_graph_output()), None)  # a quantized output has the float name
        name = name or value.name or ""
        others = [use.node for use in value.uses() if use.node is not entered and use.node.op_type != "QuantizeLinear"]
        return QuantizedValue(name, grid, None, self._readers(node), bool(others) or value.is_graph_output(), at)

    def _of_constant(
        self, source: ir.Value, grid: FileGrid, node: ir.Node, readers: Sequence[tuple[ir.Node, int]], at: str
    ) -> QuantizedValue:
        name, tensor = source.name or "", source.const_value
        stem = next((name.removesuffix(end) for end in _ENDINGS if name.endswith(end)), name)
        shape = tuple(tensor.numpy().shape) if tensor is not None else ()
        grid = self._as_said(grid, node, at)
        return QuantizedValue(stem, grid, shape, tuple((reader.name or "", i) for reader, i in readers), False, at)

    def _as_said(self, grid: FileGrid, node: ir.Node, at: str) -> FileGrid:
        """The grid in the format that the writer named, where that has fewer levels than the type that stores it."""
        text = node.metadata_props.get(FORMAT)
        if text is None or not grid.spec.is_integer:
            return grid
        try:
            spec = QuantSpec.parse(text)
        except IsobitError as error:
            raise EncodingError(f"{at}: its metadata {FORMAT} are no number format: {error}") from error
        if spec.dtype != grid.spec.dtype or spec.bits > grid.spec.bits:
            raise EncodingError(f"{at}: its metadata say {text}, and it holds {grid.spec.type_name}")
        granularity = grid.spec.granularity
        return replace(grid, spec=spec if granularity is None else spec.with_granularity(granularity))

    def _readers(self, node: ir.Node) -> tuple[tuple[str, int], ...]:
        return tuple((use.node.name or "", use.idx) for use in node.outputs[0].uses())

    def _behind_clip(self, value: ir.Value, grid: FileGrid, quantizer: ir.Node) -> tuple[ir.Value, FileGrid, ir.Node]:
        """Our Clip (or Max, for float8) in front of a quantizer is part of it: it says the narrower width."""
        clip = value.producer()
        if clip is None or clip.op_type not in ("Clip", "Max") or clip.domain or len(value.uses()) != 1:
            return value, grid, quantizer
        bounds = [None if b is None or b.const_value is None else b.const_value.numpy() for b in clip.inputs[1:]]
        before = clip.inputs[0]
        if before is None or any(bound is None or bound.size != 1 for bound in bounds):
            return value, grid, quantizer
        limits = [np.float32(bound.reshape(())) for bound in bounds if bound is not None]
        for spec in _narrower(grid.spec) if isinstance(grid.spec.granularity, PerTensor) else ():
            try:
                encoding = Encoding(spec, grid.scale.reshape(()), grid.zero_point.reshape(()))
            except EncodingError:  # the zero point is outside the narrower grid
                continue
            ends = [encoding.minimum] if clip.op_type == "Max" else [encoding.minimum, encoding.maximum]
            if len(limits) == len(ends) and all(limit == end for limit, end in zip(limits, ends, strict=True)):
                return before, FileGrid(spec, grid.scale, grid.zero_point), clip
        return value, grid, quantizer

    def _grid(self, node: ir.Node, source: ir.Value, at: str) -> FileGrid:
        scales = self._constant(node, 1, at)
        if scales is None or (scales.dtype.kind != "f" and scales.dtype.name != "bfloat16"):
            raise EncodingError(f"{at}: its scale is missing or no float")
        scale = scales.astype(np.float32)
        zero_points = self._constant(node, 2, at)
        data_type = self._kind(node, source)
        if data_type not in TYPES:
            raise EncodingError(f"{at}: type {data_type} is none that isobit knows")
        zeros = np.zeros(scale.shape, np.int32) if zero_points is None else zero_points.astype(np.int32)
        return file_grid(data_type, scale, zeros, *_axis(node, scale, source))

    def _constant(self, node: ir.Node, index: int, at: str) -> NDArray[Any] | None:
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is None:
            return None
        picked = value.producer()
        if picked is not None and picked.op_type == "Gather" and picked.inputs[0] is not None:
            value = picked.inputs[0]  # of the rows that are looked up
        if value.const_value is None:
            raise EncodingError(f"{at}: {value.name}: scales and zero points must be constants")
        return value.const_value.numpy()

    def _kind(self, node: ir.Node, source: ir.Value) -> ir.DataType | None:
        """The type of the integers: the constant's, the zero point's, what the quantizer says, or uint8."""
        if source.const_value is not None:
            return source.const_value.dtype
        zero = node.inputs[2] if len(node.inputs) > 2 else None
        if zero is not None and zero.const_value is not None:
            return zero.const_value.dtype
        quantizer = source.producer()
        if quantizer is not None and "output_dtype" in quantizer.attributes:
            return ir.DataType(quantizer.attributes["output_dtype"].as_int())
        return source.dtype or ir.DataType.UINT8


def _axis(node: ir.Node, scale: NDArray[np.float32], source: ir.Value) -> tuple[int | None, int | None]:
    """Axis and block size as DequantizeLinear says them; one scale alone is per tensor."""
    block = node.attributes["block_size"].as_int() if "block_size" in node.attributes else 0
    if scale.ndim == 0 or (scale.size == 1 and not block):
        return None, None
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
    shape = source.const_value.numpy().shape if source.const_value is not None else source.shape
    rank = len(shape) if shape is not None else scale.ndim
    return axis % rank if rank else 0, block or None


def _narrower(spec: QuantSpec) -> Iterator[QuantSpec]:
    """Formats that are stored in the type of `spec` with a Clip or Max in front of them."""
    if not spec.is_integer:
        yield spec
        return
    widths = range(2, 8) if spec.bits == 8 else range(9, 16)
    granularity = spec.granularity
    for bits in (spec.bits, *widths):
        if spec.dtype == "int" and spec.symmetric:
            yield QuantSpec("int", bits, strict=True, granularity=granularity)
        if bits != spec.bits:
            yield QuantSpec(spec.dtype, bits, spec.symmetric and spec.dtype == "int", granularity=granularity)


def _placed(entry: QuantizedValue, names: Names | None) -> Iterator[tuple[Site | None, Encoding]]:
    """The sites of an entry and their encodings in canonical layout."""
    grid = entry.grid
    if names is None:
        site: Site = Tensor(entry.name) if entry.shape is None else Weight(entry.name)
        yield site, Encoding(grid.spec, grid.scale, grid.zero_point, grid.axis)
        return
    places = _places(entry, names)
    if not places:
        yield None, Encoding(grid.spec, grid.scale, grid.zero_point, grid.axis)
    for place in places:
        if not place.is_constant:
            encoding = Encoding(grid.spec, grid.scale, grid.zero_point, grid.axis)
            single = _single_readers(entry, place, names)
            for reader in single or (place.site,):
                yield reader, encoding
        else:
            encoding = canonical_encoding(
                grid.spec, grid.scale, grid.zero_point, grid.axis, place.native, place.layout,
                channel_axis=place.channel_axis,
            )  # fmt: skip
            for reader in _single_readers_of_constant(entry, place, names) or (place.site,):
                yield reader, encoding


def _places(entry: QuantizedValue, names: Names) -> list[Place]:
    """By name, and for a constant also by who reads it: tools give it new names."""
    is_constant = entry.shape is not None
    places = [place for place in names.find(entry.name) if place.is_constant == is_constant]
    if is_constant and (entry.for_some_readers or not places):
        by_reader = [place for reader in entry.readers for place in names.constants_at(*reader)]
        places = by_reader or places
    if is_constant:
        places = [place for place in places if place.native == entry.shape]
    return list(dict.fromkeys(places))


def _single_readers(entry: QuantizedValue, place: Place, names: Names) -> list[Site]:
    """The readers that read an activation quantized while others read it in float."""
    if not entry.for_some_readers or place.inner:
        return []
    return [site for reader in entry.readers if (site := names.inputs.get(reader)) is not None]


def _single_readers_of_constant(entry: QuantizedValue, place: Place, names: Names) -> list[Site]:
    """The readers that an entry is for, where others read the same constant on another grid."""
    if not entry.for_some_readers:
        return []
    readers = {key: site for key, site in names.inputs.items() if place in names.constants_at(*key)}
    mine = [site for key, site in readers.items() if key in entry.readers]
    return list(mine) if len(mine) < len(readers) else []
