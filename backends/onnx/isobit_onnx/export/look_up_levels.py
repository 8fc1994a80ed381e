"""Tables of a QDQ model are looked up in integers: the rows that were asked for become floats, not all of them.

A DequantizeLinear in front of a Gather makes floats of a whole table at each run, which takes longer than the rest of a
small transformer, and as much memory as the table had in float. Behind the Gather it computes the same numbers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from isobit.graph.free_name import take_name
from isobit_onnx.qdq.table_lookups import BY_ROW, GRANULARITY, NIBBLES, behind_reshapes, packed, pairs
from isobit_onnx.read.initializers import add_initializer
from isobit_onnx.read.rewrite import constant_of

#: Types that Gather reads. It reads none of 4 bits: of such tables bytes are picked, and what each of them holds.
_TYPES = frozenset({ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16})


def look_up_levels(model: ir.Model) -> None:
    """Move every DequantizeLinear of a table behind the Gather nodes that read it, in place.

    A table of 4 bits that layers read as well is in the file twice then. What nobody reads any more stays for a pass.
    """
    lookups = _Lookups(model.graph)
    for node in list(model.graph):
        if node.op_type == "DequantizeLinear" and not node.domain:
            lookups.move(node)


class _RowGrid(NamedTuple):
    """Scale and zero point of rows, the attributes that say how they lie, and whether they are picked as rows are."""

    arrays: list[NDArray[Any]]
    settings: dict[str, int]
    is_picked: bool


class _Lookups:
    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.taken = {node.name or "" for node in graph} | set(ir.convenience.create_value_mapping(graph))
        self.packed: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}  # bytes of a table, and what they hold

    def move(self, dequantizer: ir.Node) -> None:
        """Behind the Gather nodes that read it; it stays for others."""
        rows, levels = dequantizer.outputs[0], dequantizer.inputs[0]
        if levels is None or behind_reshapes(levels).const_value is None:
            return  # what is picked from was computed
        for gather in [use.node for use in rows.uses() if use.idx == 0 and self._looks_up(use.node)]:
            found = self._grid(dequantizer, gather)
            if found is not None:
                self._behind(dequantizer, gather, found)
        if levels in self.packed and not rows.uses() and not rows.is_graph_output():
            self.graph.remove(dequantizer, safe=True)
            self._give_name(levels)

    def _give_name(self, levels: ir.Value) -> None:
        """Bytes that are all that is left of a table have its name, by which readers know the constant."""
        if levels.name is not None and not levels.uses():
            del self.graph.initializers[levels.name]
            self.packed[levels][0].name = levels.name

    def _looks_up(self, node: ir.Node) -> bool:
        """Whether a node picks rows by an index that is not known before the model runs."""
        is_gather = node.op_type == "Gather" and not node.domain and node.graph is self.graph
        return is_gather and node.attributes.get_int("axis", 0) == 0 and constant_of(node.inputs[1]) is None

    def _grid(self, dequantizer: ir.Node, gather: ir.Node) -> _RowGrid | None:
        """The grid of the rows that a Gather picks; None where they cannot be picked in integers."""
        levels, *operands = dequantizer.inputs
        arrays = [constant_of(operand) for operand in operands]
        shape, picked = dequantizer.outputs[0].shape, gather.outputs[0].shape
        found = [array for array in arrays if array is not None]
        if levels is None or shape is None or picked is None or len(found) < len(arrays):
            return None
        table = tuple(size for size in shape if isinstance(size, int))  # a constant's are numbers
        is_packed = (
            levels.dtype in NIBBLES and len(table) == 2 and table[1] % 2 == 0 and constant_of(levels) is not None
        )
        if not is_packed and levels.dtype not in _TYPES:
            return None
        if found[0].size == 1:
            return _RowGrid([array.reshape(()) for array in found], {}, False)
        axis = dequantizer.attributes.get_int("axis", 1) % len(table)
        block = dequantizer.attributes.get_int("block_size", 0)
        if len(table) != 2 or (axis == 0 and block):
            return None  # rows share scales
        if axis == 1 and not block:
            return _RowGrid(found, {"axis": -1}, False)
        if len(picked) == 1 and found[0].size == table[0]:  # the one scale of one row is that of a tensor
            return _RowGrid([array.reshape(-1) for array in found], {"axis": 0}, True)
        by_row = [array if array.ndim == 2 else array[:, None] for array in found]
        return _RowGrid(by_row, {"axis": -1, "block_size": block or table[1]}, True)

    def _behind(self, dequantizer: ir.Node, gather: ir.Node, grid: _RowGrid) -> None:
        """Let a Gather read integers, and others, where each row has a grid of its own, its scales and zero points."""
        levels, floats = dequantizer.inputs[0], gather.outputs[0]
        assert levels is not None
        name, shape = floats.name or "rows", floats.shape
        nodes: list[ir.Node] = []
        kind = ir.DataType.INT8 if levels.dtype == ir.DataType.INT4 else ir.DataType.UINT8
        kind = kind if levels.dtype in NIBBLES else levels.dtype or kind
        operands = [
            self._constant(array, ir.DataType.FLOAT if index == 0 else kind, f"{name}_{('scale', 'zero_point')[index]}")
            for index, array in enumerate(grid.arrays)
        ]
        if grid.is_picked:
            operands = [
                self._node(nodes, "Gather", [operand, gather.inputs[1]], f"{operand.name}_picked", operand.dtype)
                for operand in operands
            ]
        if levels.dtype in NIBBLES:
            picked = self._unpacked(nodes, gather, levels, kind)
        else:
            gather.replace_input_with(0, levels)
            picked, floats.type = floats, ir.TensorType(kind)
        uses = [use for use in floats.uses() if use.node not in nodes]
        result = self._node(nodes, "DequantizeLinear", [picked, *operands], f"{name}_dequantized", None, grid.settings)
        nodes[-1].metadata_props.update(dequantizer.metadata_props)
        if grid.is_picked and "block_size" not in dequantizer.attributes:
            nodes[-1].metadata_props[GRANULARITY] = BY_ROW
        result.shape, result.type = shape, ir.TensorType(ir.DataType.FLOAT)
        for use in uses:
            use.node.replace_input_with(use.idx, result)
        for position, output in enumerate(self.graph.outputs):
            if output is floats:
                self.graph.outputs[position] = result
        floats.name, result.name = self._free(f"{name}_quantized"), name
        self.graph.insert_after(gather, nodes)

    def _unpacked(self, nodes: list[ir.Node], gather: ir.Node, levels: ir.Value, kind: ir.DataType) -> ir.Value:
        """Bytes of the rows that are picked, and the two integers that each of them holds."""
        stored, bytes_of_rows = constant_of(levels), gather.outputs[0]
        assert stored is not None
        assert bytes_of_rows.shape is not None
        name, stem, sizes_of_index = bytes_of_rows.name or "rows", levels.name or "table", bytes_of_rows.shape[:-1]
        if levels not in self.packed:
            assert levels.dtype is not None
            in_bytes = self._constant(packed(stored), ir.DataType.UINT8, stem)
            self.packed[levels] = in_bytes, self._constant(pairs(levels.dtype), kind, f"{stem}_pairs")
        table, held = self.packed[levels]
        gather.replace_input_with(0, table)
        bytes_of_rows.type = ir.TensorType(ir.DataType.UINT8)
        bytes_of_rows.shape = ir.Shape([*sizes_of_index, stored.shape[1] // 2])
        index = self._node(nodes, "Cast", [bytes_of_rows], f"{name}_bytes", ir.DataType.INT32, {"to": 6})
        both = self._node(nodes, "Gather", [held, index], f"{name}_pairs", kind)
        sizes = self._constant(
            np.array([0] * len(sizes_of_index) + [stored.shape[1]]), ir.DataType.INT64, f"{name}_sizes"
        )
        return self._node(nodes, "Reshape", [both, sizes], f"{name}_unpacked", kind)

    def _constant(self, array: NDArray[Any], kind: ir.DataType, name: str) -> ir.Value:
        values = np.ascontiguousarray(array).astype(kind.numpy())
        return add_initializer(self.graph, ir.Tensor(values, dtype=kind, name=self._free(name)))

    def _node(
        self,
        nodes: list[ir.Node],
        op: str,
        inputs: list[ir.Value | None],
        name: str,
        kind: ir.DataType | None,
        settings: dict[str, int] | None = None,
    ) -> ir.Value:
        node = ir.Node("", op, inputs, ir.convenience.convert_attributes(settings or {}))
        node.name, node.outputs[0].name = self._free(f"{name}_node"), self._free(name)
        node.outputs[0].type = None if kind is None else ir.TensorType(kind)
        nodes.append(node)
        return node.outputs[0]

    def _free(self, name: str) -> str:
        return take_name(name, self.taken)
