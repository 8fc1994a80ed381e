"""The QDQ writer: puts QuantizeLinear / DequantizeLinear pairs into a float ONNX model, in place.

Constants are stored as integers behind a DequantizeLinear. Formats that ONNX has no type for are clipped to their range
and stored in the next wider type, which gives the same bits; the DequantizeLinear of a constant says its format.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from isobit.encodings import Encoding, PerTensor, QuantSpec
from isobit.graph import Permute, to_canonical, to_native
from isobit.graph.free_name import free_name
from isobit_onnx.qdq.grids import FORMAT, OnnxGrid, float_tensor, grid_of, integer_tensor, needs_clip, stored_type
from isobit_onnx.qdq.inserted import Grid, Inserted, Quantized, levels_of
from isobit_onnx.read.initializers import add_initializer
from isobit_onnx.read.unused_nodes import remove_unused
from isobit_onnx.translate.sites import NativeSite
from isobit_onnx.translate.translate import readers_through_views, view_chain

Placed = Iterable[tuple[NativeSite, Encoding]]


def insert_quantizers(
    model: ir.Model,
    placed: Placed,
    interior: Mapping[str, Encoding] | None = None,
    *,
    for_every_session: bool = False,
    is_switched: bool = False,
) -> Inserted:
    """Quantize every site of `placed` in `model`; `interior` are further values of an export, by name.

    `for_every_session` gives each reader of an int8 constant a DequantizeLinear of its own. `is_switched` makes an
    input of each site, a truth value, that says whether it is on.
    """
    writer = _QdqWriter(model, for_every_session=for_every_session, is_switched=is_switched)
    for_some_readers = [(site, encoding) for site, encoding in placed if site.readers is not None]
    for_all_readers = [(site, encoding) for site, encoding in placed if site.readers is None]
    for site, encoding in for_some_readers:  # first: these readers leave the float value before all others do
        writer.quantize(site, encoding)
    quantized = {site.value: writer.quantize(site, encoding) for site, encoding in for_all_readers}
    for name, encoding in (interior or {}).items():
        writer.quantize(NativeSite(name), encoding)
    remove_unused(model)
    return Inserted(quantized, writer.exchangeable(), writer.switches)


class _QdqWriter:
    def __init__(self, model: ir.Model, *, for_every_session: bool, is_switched: bool) -> None:
        self.graph, self.for_every_session, self.is_switched = model.graph, for_every_session, is_switched
        self.nodes = {node.name or "": node for node in model.graph}
        self.values = {v.name or "": v for v in ir.convenience.create_value_mapping(model.graph).values()}
        self.taken: set[str] = set()  # names of what was added
        self.held: dict[str, list[tuple[ir.Tensor[Any], ir.Value]]] = {}  # integers by constant
        self.own_nodes: set[str] = set()  # they keep reading the float value
        self.grids: list[tuple[NativeSite, Grid | None]] = []
        self.switches: dict[NativeSite, str] = {}

    def exchangeable(self) -> dict[NativeSite, Grid | None]:
        """What holds the grid of each site; None for sites that share the levels of a constant, or are there twice."""
        sites = Counter(site for site, _ in self.grids)
        levels = Counter(grid.levels for _, grid in self.grids if grid is not None)
        return {
            site: None if grid is None or sites[site] > 1 or (grid.levels and levels[grid.levels] > 1) else grid
            for site, grid in self.grids
        }

    def quantize(self, site: NativeSite, encoding: Encoding) -> Quantized:
        asked = site
        if not site.value and site.readers:  # the site has the name of its reader alone
            site = self._in_front_of_view(site)
            assert site.readers
            node, index = site.readers[0]
            value = self.nodes[node].inputs[index]
        else:
            value = self.values.get(site.value)
        if value is None:
            raise KeyError(f"value {site.value!r} is not in the model")
        if value.is_initializer() and not value.is_graph_input():
            separate = self._separate_constants(value, site, encoding)
            if separate is not None:
                return Quantized(value, separate)
            result, grid = self._constant(value, site, encoding)
        else:
            result, grid = self._activation(value, encoding)
        self.grids.append((asked, grid))
        if self.is_switched:
            result = self._switched(value, result, asked)
        self._rewire(value, result, site)
        return Quantized(value, result)

    def _in_front_of_view(self, site: NativeSite) -> NativeSite:
        """A constant that its readers have transposed, beside others that do not, is one of its own for them."""
        assert site.readers
        name, index = site.readers[0]
        value = self.nodes[name].inputs[index]
        turn = value.producer() if value is not None else None
        source = turn.inputs[0] if turn is not None and turn.op_type == "Transpose" else None
        if value is None or turn is None or source is None or source.const_value is None:
            return site
        perm = tuple(turn.attributes["perm"].as_ints())
        array = np.ascontiguousarray(np.transpose(source.const_value.numpy(), perm))
        own = self._register(ir.Tensor(array, name=self._free(value.name)))
        for node, place in site.readers:
            self._reread(self.nodes[node], place, value, own)
        if not value.uses() and not value.is_graph_output():
            self.graph.remove(turn, safe=True)
        back = Permute(tuple(int(axis) for axis in np.argsort(perm)))
        return replace(site, layout=(back, *site.layout))

    # --- activations -----------------------------------------------------------------------------------------------

    def _activation(self, value: ir.Value, encoding: Encoding) -> tuple[ir.Value, Grid | None]:
        spec, stem = encoding.spec, value.name or "value"
        nodes: list[ir.Node] = []
        held: Grid | None = None
        if spec.type_name in ("float16", "bfloat16"):
            kind = stored_type(spec, activation=True)
            small = self._node(nodes, "Cast", [value], f"{stem}_cast", {"to": kind}, kind)
            result = self._node(nodes, "Cast", [small], f"{stem}_float", {"to": ir.DataType.FLOAT})
        else:
            shape = tuple(n if isinstance(n, int) else 1 for n in value.shape) if value.shape is not None else ()
            grid = grid_of(encoding, shape, activation=True)
            source = value
            if needs_clip(spec):
                bounds = [self._initializer(f"{stem}_{end}", b) for end, b in _bounds(encoding)]
                source = self._node(nodes, "Clip", [value, *bounds], f"{stem}_clipped")
            elif not spec.is_integer:
                # onnxruntime (1.32) drops a Relu in front of a QuantizeLinear to float8; it leaves Max alone.
                lowest = self._initializer(f"{stem}_lowest", encoding.minimum)
                source = self._node(nodes, "Max", [value, lowest], f"{stem}_saturated")
            operands = self._operands(grid, stem)
            if source is value:  # else there are bounds as well
                held = Grid(NativeSite(stem), shape, *_names(operands))
            settings = _attributes(grid)
            quantized = self._node(
                nodes, "QuantizeLinear", [source, *operands], f"{stem}_quantized", settings, grid.type
            )
            result = self._node(nodes, "DequantizeLinear", [quantized, *operands], f"{stem}_dequantized", settings)
        result.shape, result.type = value.shape, ir.TensorType(ir.DataType.FLOAT)
        producer = value.producer()
        if producer is not None:
            self.graph.insert_after(producer, nodes)
        else:
            self.graph.insert_before(self.graph[0], nodes)
        return result, held

    # --- constants -------------------------------------------------------------------------------------------------

    def _constant(self, value: ir.Value, site: NativeSite, encoding: Encoding) -> tuple[ir.Value, Grid | None]:
        tensor = value.const_value
        if tensor is None:
            raise KeyError(f"constant {value.name!r} has no value")
        native, spec, stem = tensor.numpy(), encoding.spec, value.name or "constant"
        nodes: list[ir.Node] = []
        held: Grid | None = None
        if spec.type_name in ("float16", "bfloat16"):
            stored = self._register(float_tensor(native, spec, self._free(f"{stem}_{spec.type_name}")))
            result = self._node(nodes, "Cast", [stored], f"{stem}_float", {"to": ir.DataType.FLOAT})
        else:
            grid = grid_of(encoding, native.shape, site.layout, activation=False)
            name = self._free(f"{stem}_quantized")
            if spec.is_integer:
                stored = self._stored(nodes, stem, levels_of(native, site, encoding, grid.type, name))
            else:
                canonical = to_canonical(native, site.layout)
                scale, _ = encoding.broadcast(canonical.shape)
                limit = np.float32(float(encoding.maximum.max() / encoding.scale.max()))
                ratio = np.clip(canonical / scale, -limit, limit)
                levels = to_native(ratio, site.layout, np.zeros(native.shape, np.float32))
                stored = self._register(float_tensor(levels, spec, name))
            operands = self._operands(grid, stem)
            if spec.is_integer:
                held = Grid(site, native.shape, *_names(operands), stored.name, tensor)
            result = self._node(
                nodes, "DequantizeLinear", [stored, *operands], f"{stem}_dequantized", _attributes(grid)
            )
            bare = replace(spec, granularity=None)
            if spec.is_integer and bare != QuantSpec.parse(grid.type.name.lower()):
                nodes[-1].metadata_props[FORMAT] = str(bare)
        result.shape, result.type = ir.Shape(native.shape), ir.TensorType(ir.DataType.FLOAT)
        earlier = nodes[0].inputs[0].producer() if nodes[0].inputs[0] is not None else None
        if earlier is not None:
            self.graph.insert_after(earlier, nodes)
        else:
            self.graph.insert_before(self.graph[0], nodes)
        return result, held

    def _stored(self, nodes: list[ir.Node], stem: str, tensor: ir.Tensor[Any]) -> ir.Value:
        """The integers of a constant, which the file holds once however many readers have a quantizer of their own.

        With session.x64quantprecision onnxruntime (1.32) makes uint8 of int8 constants, under one name for all readers
        of a constant, and refuses the second. A Reshape to the shape that it has, which is folded when the file is
        loaded, gives each a name of its own; one behind the other, because equal ones would be merged.
        """
        held = self.held.setdefault(stem, [])
        index = next((i for i, (t, _) in enumerate(held) if t.dtype == tensor.dtype and _is_same(t, tensor)), None)
        if index is None:
            stored = self._register(tensor)
            held.append((tensor, stored))
            return stored
        first, stored = held[index]
        if self.for_every_session and tensor.dtype == ir.DataType.INT8:
            shape = ir.Tensor(np.array(first.shape.numpy(), np.int64), name=self._free(f"{stem}_shape"))
            stored = self._node(
                nodes, "Reshape", [stored, self._register(shape)], f"{stem}_quantized", kind=tensor.dtype
            )
            stored.shape = ir.Shape(first.shape.numpy())
            held[index] = first, stored
        return stored

    def _separate_constants(self, value: ir.Value, site: NativeSite, encoding: Encoding) -> ir.Value | None:
        """A DequantizeLinear for each reader where several read int8, None where one will do (see `_stored`)."""
        if not self.for_every_session or stored_type(encoding.spec, activation=False) != ir.DataType.INT8:
            return None
        named = site.readers
        readers = (
            readers_through_views(value) if named is None else [(self.nodes[name], index) for name, index in named]
        )
        if len(readers) < 2 or value.is_graph_output():
            return None
        for node, index in readers:
            result, _ = self._constant(value, site, encoding)
            self._reread(node, index, value, result)
        return result

    def _operands(self, grid: OnnxGrid, stem: str) -> list[ir.Value]:
        scale = self._initializer(f"{stem}_scale", grid.scale)
        if grid.type == ir.DataType.INT32:  # ONNX has no zero point for int32 worth writing: it is 0
            return [scale]
        zero = integer_tensor(np.asarray(grid.zero_point), grid.type, self._free(f"{stem}_zero_point"))
        return [scale, self._register(zero)]

    def _switched(self, value: ir.Value, result: ir.Value, site: NativeSite) -> ir.Value:
        """What the quantizer makes of a value, or the value, as an input says."""
        on = ir.Value(name=self._free(f"{value.name}_is_on"), shape=ir.Shape([]), type=ir.TensorType(ir.DataType.BOOL))
        self.graph.inputs.append(on)
        self.switches[site] = on.name or ""
        nodes: list[ir.Node] = []
        chosen = self._node(nodes, "Where", [on, result, value], f"{value.name}_switched")
        chosen.shape = result.shape
        producer = result.producer()
        assert producer is not None
        self.graph.insert_after(producer, nodes)
        return chosen

    # --- wiring ----------------------------------------------------------------------------------------------------

    def _rewire(self, value: ir.Value, result: ir.Value, site: NativeSite) -> None:
        if site.readers is not None:
            for name, index in site.readers:
                self._reread(self.nodes[name], index, value, result)
            return
        for use in list(value.uses()):
            if use.node.name not in self.own_nodes:
                use.node.replace_input_with(use.idx, result)
        if value.is_graph_output() and not value.is_graph_input():  # an input passed through keeps the caller's values
            name = value.name or ""
            value.name = self._free(f"{name}_unquantized")
            returned = self._read_again(result) if result.uses() else result
            for position, output in enumerate(self.graph.outputs):
                if output is value:
                    self.graph.outputs[position] = returned
            returned.name = name

    def _read_again(self, result: ir.Value) -> ir.Value:
        """`result` computed once more, for the caller alone.

        onnxruntime (1.32) may drop a Transpose before a quantized output that other nodes read, and returns the output
        in the wrong shape.
        """
        producer = result.producer()
        if producer is None:
            return result
        copy = ir.Node("", producer.op_type, producer.inputs, producer.attributes.values())
        copy.name = self._free(f"{producer.name}_returned")
        self.own_nodes.add(copy.name)
        copy.outputs[0].shape, copy.outputs[0].type = result.shape, result.type
        self.graph.insert_after(producer, [copy])
        return copy.outputs[0]

    def _reread(self, node: ir.Node, index: int, value: ir.Value, result: ir.Value) -> None:
        """Let one reader read `result`; views between the value and the reader are copied for it."""
        current = node.inputs[index]
        if current is None:
            return
        chain = view_chain(current)
        position = next((i for i, link in enumerate(chain) if link is value), None)
        if position is None:
            return
        for link in reversed(chain[:position]):
            view = link.producer()
            if view is None:
                return
            operands = [result, *view.inputs[1:]]
            copy = ir.Node("", view.op_type, operands, view.attributes.values(), name=self._free(view.name))
            copy.outputs[0].name = self._free(link.name)
            copy.outputs[0].shape, copy.outputs[0].type = link.shape, link.type
            self.graph.insert_before(node, [copy])
            result = copy.outputs[0]
        node.replace_input_with(index, result)

    # --- making ----------------------------------------------------------------------------------------------------

    def _node(
        self,
        nodes: list[ir.Node],
        op: str,
        inputs: list[ir.Value],
        name: str,
        attributes: Mapping[str, Any] | None = None,
        kind: ir.DataType = ir.DataType.FLOAT,
    ) -> ir.Value:
        converted = ir.convenience.convert_attributes(
            {key: int(value) for key, value in (attributes or {}).items() if value is not None}
        )
        node = ir.Node("", op, inputs, converted, name=self._free(f"{name}_node"))
        node.outputs[0].name = self._free(name)
        node.outputs[0].type = ir.TensorType(kind)
        nodes.append(node)
        self.own_nodes.add(node.name or "")
        self.values[node.outputs[0].name or ""] = node.outputs[0]
        return node.outputs[0]

    def _initializer(self, name: str, array: Any) -> ir.Value:
        return self._register(ir.Tensor(np.asarray(array, np.float32), name=self._free(name)))

    def _register(self, tensor: ir.Tensor[Any]) -> ir.Value:
        value = add_initializer(self.graph, tensor)
        self.values[tensor.name or ""] = value
        return value

    def _free(self, name: str | None) -> str:
        free = free_name(name or "value", self.values, self.nodes, self.taken)
        self.taken.add(free)
        return free


def _names(operands: list[ir.Value]) -> tuple[str, str | None]:
    """Of scale and zero point, if there is one."""
    scale, *zero = (value.name or "" for value in operands)
    return scale, zero[0] if zero else None


def _is_same(one: ir.Tensor[Any], other: ir.Tensor[Any]) -> bool:
    return np.array_equal(one.numpy(), other.numpy())


def _attributes(grid: OnnxGrid) -> dict[str, int | None]:
    if grid.axis is None:
        return {}
    return {"axis": grid.axis, "block_size": grid.block_size}


def _bounds(encoding: Encoding) -> list[tuple[str, Any]]:
    if not isinstance(encoding.spec.granularity, PerTensor):
        raise ValueError("activations of a width without an ONNX type are per tensor")
    return [("min", encoding.minimum), ("max", encoding.maximum)]
