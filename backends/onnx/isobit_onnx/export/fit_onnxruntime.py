"""A QDQ model in the forms that onnxruntime (1.32) loads at every level of optimisation. No value changes.

Its optimiser copies quantizers of int8 past moves of values and then fails on the copies, and moves transposes to one
alone of two inputs that are the same; it ends the process where such a copy is read in a body; its integer kernels take
scales for granted that they cannot use, or round floats and 16 bits to eight; its fused norm takes in the cast in
front of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from isobit.graph.free_name import take_name
from isobit_onnx.read.initializers import add_initializer
from isobit_onnx.read.rewrite import constant_of

#: Past these onnxruntime copies quantizers; values are moved or dropped, and come out on the grid that they came in on.
_MOVES = frozenset({"MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice"})

_EIGHT_BITS = frozenset({ir.DataType.INT8, ir.DataType.UINT8})
_SIXTEEN_BITS = frozenset({ir.DataType.INT16, ir.DataType.UINT16})


def fit_onnxruntime(model: ir.Model) -> None:
    """Rewrite a QDQ model, in place, so that onnxruntime loads and runs it with all its optimisations."""
    fitting = _Fitting(model.graph)
    for node in list(model.graph):
        if node.op_type == "DequantizeLinear":
            fitting.weight(node)
        elif node.op_type == "Resize" and ("axes" in node.attributes or _is_cubic(node)):
            fitting.resize(node)
    for node in list(model.graph):
        if node.op_type == "DequantizeLinear":
            fitting.behind(node)
        elif node.op_type == "QuantizeLinear":
            fitting.before(node)
        elif node.op_type == "MatMul" and not node.domain:
            fitting.bias(node)
        elif node.op_type == "Cast":
            fitting.norm(node)
        elif _is_move(node):
            fitting.read_in_body(node)
    for node in list(model.graph):
        fitting.repeated(node)


class _Fitting:
    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.taken = {node.name or "" for node in graph} | set(ir.convenience.create_value_mapping(graph))

    # --- int8 activations: the copies that onnxruntime would make, made well -----------------------------------------

    def behind(self, dequantizer: ir.Node) -> None:
        """Quantize once more what moves hand on; on the grid already, it keeps its bits."""
        waiting = [dequantizer]
        while waiting:
            node = waiting.pop()
            if not _is_one_int8_grid(node):
                continue
            moves = [use.node for use in node.outputs[0].uses() if use.idx == 0 and _is_move(use.node)]
            for move in moves:
                again = self._behind_move(node, move)
                if again is not None:
                    waiting.append(again)

    def _behind_move(self, dequantizer: ir.Node, move: ir.Node) -> ir.Node | None:
        """The new DequantizeLinear, None where there is nothing to do."""
        moved = move.outputs[0]
        readers = [use for use in moved.uses() if use.node.op_type != "QuantizeLinear"]
        is_output = moved.is_graph_output()
        if not readers and not is_output:
            return None
        if is_output and moved.uses():
            return None  # onnxruntime leaves these alone
        quantizer, result = self._pair(moved, dequantizer)
        self.graph.insert_after(move, [quantizer, result])
        for use in readers:
            use.node.replace_input_with(use.idx, result.outputs[0])
        if is_output:
            name, moved.name = moved.name, self._free(f"{moved.name}_unquantized")
            for position, output in enumerate(self.graph.outputs):
                if output is moved:
                    self.graph.outputs[position] = result.outputs[0]
            result.outputs[0].name = name
        return result

    def before(self, quantizer: ir.Node) -> None:
        """Quantize what moves read where a quantizer is the only reader of what they hand on."""
        while _is_one_int8_grid(quantizer):
            moved = quantizer.inputs[0]
            move = moved.producer() if moved is not None else None
            if moved is None or move is None or not _is_move(move) or not _is_read_once(moved):
                return
            source = move.inputs[0]
            producer = source.producer() if source is not None else None
            if source is None or not _is_read_once(source):
                return
            if producer is not None and producer.op_type == "DequantizeLinear":
                return
            first, result = self._pair(source, quantizer)
            self.graph.insert_before(move, [first, result])
            move.replace_input_with(0, result.outputs[0])
            quantizer = first

    def read_in_body(self, move: ir.Node) -> None:
        """Quantize once more, whatever the type, what moves hand on to a node in the body of another.

        Where onnxruntime makes the copy, it looks for the reader among the operands of the outer node, and the process
        ends.
        """
        moved = move.outputs[0]
        if all(use.node.graph is self.graph for use in moved.uses()):
            return
        source = move.inputs[0].producer() if move.inputs[0] is not None else None
        while source is not None and _is_move(source):
            source = source.inputs[0].producer() if source.inputs[0] is not None else None
        if source is None or source.op_type != "DequantizeLinear" or len(source.inputs) < 2:
            return
        scale = source.inputs[1]
        if scale is not None and scale.shape is not None and len(scale.shape) == 0:
            quantizer, result = self._pair(moved, source)
            readers = [use for use in moved.uses() if use.node.op_type != "QuantizeLinear"]
            self.graph.insert_after(move, [quantizer, result])
            for use in readers:
                use.node.replace_input_with(use.idx, result.outputs[0])

    def bias(self, product: ir.Node) -> None:
        """Give a vector that is added to a product of higher rank a second axis.

        With one axis, onnxruntime makes a Gemm between reshapes of it, and copies quantizers past these.
        """
        x, result = product.inputs[0], product.outputs[0]
        source = x.producer() if x is not None else None
        if x is None or source is None or not _is_one_int8_grid(source) or (x.shape is not None and len(x.shape) < 3):
            return
        adder = next((use.node for use in result.uses() if use.node.op_type == "Add" and not use.node.domain), None)
        if adder is None:
            return
        for index, addend in enumerate(adder.inputs):
            if addend is None or addend is result or addend.shape is None or len(addend.shape) != 1:
                continue
            axes = add_initializer(self.graph, ir.Tensor(np.zeros(1, np.int64), name=self._free(f"{addend.name}_axes")))
            view = self._node("Unsqueeze", [addend, axes], f"{addend.name}_row")
            view.outputs[0].shape, view.outputs[0].type = ir.Shape([1, addend.shape[0]]), addend.type
            self.graph.insert_before(adder, [view])
            adder.replace_input_with(index, view.outputs[0])

    def _pair(self, value: ir.Value, like: ir.Node) -> tuple[ir.Node, ir.Node]:
        operands = list(like.inputs[1:])
        stem = value.name or "value"
        quantizer = self._node("QuantizeLinear", [value, *operands], f"{stem}_moved")
        result = self._node("DequantizeLinear", [quantizer.outputs[0], *operands], f"{stem}_dequantized")
        levels = like.inputs[0] if like.op_type == "DequantizeLinear" else like.outputs[0]
        quantizer.outputs[0].type = None if levels is None else levels.type
        result.outputs[0].shape, result.outputs[0].type = value.shape, ir.TensorType(ir.DataType.FLOAT)
        return quantizer, result

    # --- one value read twice ----------------------------------------------------------------------------------------

    def repeated(self, reader: ir.Node) -> None:
        """Dequantize a value that a node reads twice a second time, with a zero point that cannot be shared.

        onnxruntime does so itself, unless a session runs in float: there its transpose optimiser changes one of the
        inputs alone.
        """
        seen: set[ir.Value] = set()
        for index, value in enumerate(reader.inputs):
            if value is None or value not in seen:
                seen.update([] if value is None else [value])
                continue
            producer = value.producer()
            if producer is None or producer.op_type != "DequantizeLinear" or len(producer.inputs) < 3:
                continue
            levels, scale, zero = producer.inputs[:3]
            if levels is None or levels.producer() is None or zero is None or zero.const_value is None:
                continue
            tensor = ir.Tensor(zero.const_value.numpy(), dtype=zero.dtype, name=self._free(zero.name))
            again = self._node(
                "DequantizeLinear", [levels, scale, add_initializer(self.graph, tensor)], f"{value.name}_again"
            )
            again.attributes.update(producer.attributes)
            again.outputs[0].shape, again.outputs[0].type = value.shape, value.type
            self.graph.insert_after(producer, [again])
            reader.replace_input_with(index, again.outputs[0])

    # --- casts -------------------------------------------------------------------------------------------------------

    def norm(self, cast: ir.Node) -> None:
        """Keep a cast apart from the steps of a norm: fused, they would read the small float, or integer, before it."""
        source, wide = cast.inputs[0], cast.outputs[0]
        readers = [use for use in wide.uses() if use.node.op_type in ("ReduceMean", "Sub") and not use.node.domain]
        if source is None or source.dtype in (None, ir.DataType.FLOAT) or wide.dtype != ir.DataType.FLOAT:
            return
        if all(use.node.op_type == "Sub" for use in readers):
            return
        lowest = ir.Tensor(np.float32(-np.inf), name=self._free(f"{wide.name}_lowest"))
        same = self._node("Max", [wide, add_initializer(self.graph, lowest)], f"{wide.name}_apart")
        same.outputs[0].shape, same.outputs[0].type = wide.shape, wide.type
        self.graph.insert_after(cast, [same])
        for use in readers:
            use.node.replace_input_with(use.idx, same.outputs[0])

    def resize(self, node: ir.Node) -> None:
        """Keep transposes, which would be moved past by the order of all axes, from a Resize that names some alone.

        Those that can name all have done so (`read/all_axes.py`); a policy for the proportions is about the named ones.
        A cubic one that shrinks has no kernel with channels last, and transposes come from both of its sides: those
        that integer convolutions are given.
        """
        source = node.inputs[0]
        rank = None if source is None or source.shape is None else len(source.shape)
        if source is None or rank is None:
            return
        same = add_initializer(self.graph, ir.Tensor(np.zeros(rank, np.int64), name=self._free(f"{source.name}_sizes")))
        before = self._node("Reshape", [source, same], f"{source.name}_apart")
        before.outputs[0].shape, before.outputs[0].type = source.shape, source.type
        self.graph.insert_before(node, [before])
        node.replace_input_with(0, before.outputs[0])
        if _is_cubic(node):
            self._apart_behind(node, same)

    def _apart_behind(self, node: ir.Node, same: ir.Value) -> None:
        """A Reshape that changes nothing behind a node, whose result has the node's name."""
        resized = node.outputs[0]
        behind = self._node("Reshape", [None, same], f"{resized.name}_resized")
        kept = behind.outputs[0]
        kept.shape, kept.type = resized.shape, resized.type
        ir.convenience.replace_all_uses_with(resized, kept, replace_graph_outputs=True)
        behind.replace_input_with(0, resized)
        self.graph.insert_after(node, [behind])
        resized.name, kept.name = kept.name, resized.name

    # --- weights that the integer kernels cannot use -----------------------------------------------------------------

    def weight(self, dequantizer: ir.Node) -> None:
        """Scales by block are kept from the kernels of Conv and MatMul, those of stacked matrices written out.

        So is every weight of 8 bits or fewer that meets floats, or an activation of 16 bits, in a product: the kernel
        for such weights (MatMulNBits) rounds those to 8 bits by itself, block by block.
        """
        stored, scale = dequantizer.inputs[0], constant_of(dequantizer.inputs[1])
        levels = constant_of(stored)
        if levels is not None:
            uses = dequantizer.outputs[0].uses()
            wide = [(use.node, use.idx) for use in uses if _meets_more_than_8_bits(use.node, use.idx)]
            if wide and stored is not None and stored.dtype not in _SIXTEEN_BITS:
                self._set_apart(dequantizer, levels.shape, wide)
        if stored is None or levels is None or scale is None or stored.dtype not in _EIGHT_BITS or scale.ndim == 0:
            return
        readers = [
            (use.node, use.idx)
            for use in dequantizer.outputs[0].uses()
            if use.idx == 1 and use.node.op_type in ("Conv", "MatMul") and not use.node.domain
        ]
        axis = dequantizer.attributes.get_int("axis", 1) % levels.ndim
        if not readers:
            return
        if "block_size" not in dequantizer.attributes:
            if levels.ndim > 2 and axis == levels.ndim - 1 and readers[0][0].op_type == "MatMul":
                self._write_out(dequantizer, levels.shape)
        else:
            self._set_apart(dequantizer, levels.shape, readers)

    def _write_out(self, dequantizer: ir.Node, shape: tuple[int, ...]) -> None:
        """One scale a column, for each matrix: onnxruntime wants them of the rank of the matrices."""
        full = (*shape[:-2], 1, shape[-1])
        for index, value in list(enumerate(dequantizer.inputs))[1:]:
            array = constant_of(value)
            if value is None or array is None:
                continue
            written = np.ascontiguousarray(np.broadcast_to(array, full))
            tensor = ir.Tensor(written, dtype=value.dtype, name=self._free(value.name))
            dequantizer.replace_input_with(index, add_initializer(self.graph, tensor))
            if not value.uses() and value.name is not None:
                self.graph.initializers.pop(value.name)
        dequantizer.attributes["axis"] = ir.AttrInt64("axis", len(shape) - 2)
        dequantizer.attributes["block_size"] = ir.AttrInt64("block_size", shape[-2])

    def _set_apart(self, dequantizer: ir.Node, shape: tuple[int, ...], readers: list[tuple[ir.Node, int]]) -> None:
        """Between the scales and the kernel stands a node that changes nothing, past which no kernel is fused.

        That is a Reshape; behind one scale alone, which onnxruntime would copy past it, the maximum with -infinity.
        """
        weight, scale = dequantizer.outputs[0], constant_of(dequantizer.inputs[1])
        operand: NDArray[Any] = np.asarray(shape, np.int64)
        op, name = "Reshape", f"{weight.name}_shape"
        if scale is not None and scale.size == 1:
            operand, op, name = np.asarray(-np.inf, np.float32), "Max", f"{weight.name}_lowest"
        constant = add_initializer(self.graph, ir.Tensor(operand, name=self._free(name)))
        view = self._node(op, [weight, constant], f"{weight.name}_apart")
        view.outputs[0].shape, view.outputs[0].type = weight.shape, weight.type
        self.graph.insert_after(dequantizer, [view])
        for reader, index in readers:
            reader.replace_input_with(index, view.outputs[0])

    # --- making ------------------------------------------------------------------------------------------------------

    def _node(self, op: str, inputs: list[ir.Value | None], name: str) -> ir.Node:
        node = ir.Node("", op, inputs, name=self._free(f"{name}_node"))
        node.outputs[0].name = self._free(name)
        return node

    def _free(self, name: str | None) -> str:
        return take_name(name or "value", self.taken)


def _meets_more_than_8_bits(node: ir.Node, index: int) -> bool:
    """Whether a weight, or what moves make of it, is multiplied with floats, or with what had 16 bits."""
    if _is_move(node):
        return index == 0 and any(_meets_more_than_8_bits(use.node, use.idx) for use in node.outputs[0].uses())
    return index == 1 and node.op_type in ("MatMul", "Gemm") and not node.domain and reads_more_than_8_bits(node)


def reads_more_than_8_bits(product: ir.Node) -> bool:
    """Whether the data of a product are floats, or had 16 bits, also behind moves."""
    value = product.inputs[0]
    producer = value.producer() if value is not None else None
    while producer is not None and _is_move(producer):
        value = producer.inputs[0]
        producer = value.producer() if value is not None else None
    if producer is None or producer.op_type != "DequantizeLinear" or producer.inputs[0] is None:
        return True
    return producer.inputs[0].dtype in _SIXTEEN_BITS


def _is_cubic(node: ir.Node) -> bool:
    mode = node.attributes.get("mode")
    return mode is not None and mode.as_string() == "cubic"


def _is_move(node: ir.Node) -> bool:
    return node.op_type in _MOVES and not node.domain


def _is_one_int8_grid(node: ir.Node) -> bool:
    """Whether a QuantizeLinear or DequantizeLinear has one scale and zero point, of int8."""
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or zero is None or zero.const_value is None:
        return False
    return zero.dtype == ir.DataType.INT8 and zero.const_value.size == 1 and "block_size" not in node.attributes


def _is_read_once(value: ir.Value) -> bool:
    return len(value.uses()) == 1 and not value.is_graph_output()
