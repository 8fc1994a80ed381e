"""Weights of a QDQ model that float kernels read become floats when a runtime loads the file, not at each run.

onnxruntime has no integer kernels of recurrent layers, none of products with floats or with activations of 16 bits that
keep the bits, and none of convolutions of floats: beside them a DequantizeLinear computes the whole weight at each run,
and the kernel finds no constant that it could lay out beforehand. Behind a DequantizeLinear a convolution keeps its
own, since onnxruntime makes up a quantizer for float weights there; so does a Gemm anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from isobit.graph.free_name import take_name
from isobit.graph.ops import RECURRENT, VALUE_PRESERVING
from isobit_onnx.export.fit_onnxruntime import reads_more_than_8_bits
from isobit_onnx.qdq.folded_weights import along, blocked_sizes
from isobit_onnx.qdq.table_lookups import behind_reshapes
from isobit_onnx.read.initializers import add_initializer
from isobit_onnx.read.rewrite import constant_of
from isobit_onnx.translate.translate import readers_through_views

#: Bytes of integers up to which they become floats for good; larger ones stay what they are, for the sake of memory.
_MOST = 2**26
#: Layers that onnxruntime computes in integers behind a DequantizeLinear, or whose float weights it quantizes there.
_QUANTIZED_UNASKED = frozenset({"Conv", "ConvTranspose"})


def fold_at_load(model: ir.Model) -> None:
    """Write the weights that float kernels read as casts and products, in place, unless they are large together.

    Those of convolutions, and those of all other layers, each by themselves.
    """
    nodes = [node for node in model.graph if node.op_type == "DequantizeLinear" and _is_read_in_float(node)]
    taken = {node.name or "" for node in model.graph} | set(ir.convenience.create_value_mapping(model.graph))
    convolved = [node for node in nodes if _is_convolved(node)]
    for part in (convolved, [node for node in nodes if node not in convolved]):
        stored = {id(constant): constant for node in part if (constant := _stored(node)) is not None}
        if sum(constant.nbytes for constant in stored.values()) > _MOST:
            continue
        for node in part:
            _fold(model.graph, node, taken)


def _is_convolved(dequantizer: ir.Node) -> bool:
    """Whether convolutions read a weight, which is small: large ones of other layers do not hold them back."""
    return all(node.op_type in _QUANTIZED_UNASKED for node, _ in readers_through_views(dequantizer.outputs[0]))


def _stored(dequantizer: ir.Node) -> ir.TensorProtocol | None:
    levels = dequantizer.inputs[0]
    return None if levels is None else behind_reshapes(levels).const_value


def _is_read_in_float(dequantizer: ir.Node) -> bool:
    """Whether a constant is a weight of nothing but kernels that compute in float."""
    constant, shape = _stored(dequantizer), dequantizer.outputs[0].shape
    if (
        constant is None
        or shape is None
        or constant.dtype.is_floating_point()
        or dequantizer.outputs[0].is_graph_output()
        or dequantizer.attributes.get_int("block_size", 0) == 1  # its sizes do not say of which axis it is a block
    ):
        return False
    if any(constant_of(operand) is None for operand in dequantizer.inputs[1:]):
        return False
    readers = readers_through_views(dequantizer.outputs[0])
    return bool(readers) and all(_computes_in_float(node, index) for node, index in readers)


def _computes_in_float(node: ir.Node, index: int) -> bool:
    if node.domain or index < 1:
        return False
    if node.op_type in RECURRENT:
        return index in (1, 2, 3)
    if node.op_type in _QUANTIZED_UNASKED:
        return index == 1 and not _reads_dequantized(node)
    return index == 1 and node.op_type == "MatMul" and reads_more_than_8_bits(node)


def _reads_dequantized(node: ir.Node) -> bool:
    """Whether a layer reads what was on integers, maybe behind operations that move values, such as a Pad."""
    value = node.inputs[0]
    producer = None if value is None else value.producer()
    while producer is not None and producer.op_type in VALUE_PRESERVING and producer.inputs[0] is not None:
        producer = producer.inputs[0].producer()
    return producer is not None and producer.op_type == "DequantizeLinear"


def _fold(graph: ir.Graph, dequantizer: ir.Node, taken: set[str]) -> None:
    levels, scale, *zero = dequantizer.inputs
    result = dequantizer.outputs[0]
    assert levels is not None
    assert result.shape is not None
    shape = tuple(size for size in result.shape if isinstance(size, int))  # a constant's are numbers
    factors, stem = constant_of(scale), result.name or "weight"
    assert factors is not None
    block = dequantizer.attributes.get_int("block_size", 0) or None
    axis = None if factors.size == 1 and not block else dequantizer.attributes.get_int("axis", 1) % len(shape)
    nodes: list[ir.Node] = []

    def add(op: str, inputs: Sequence[ir.Value], sizes: Sequence[int], **attributes: int) -> ir.Value:
        node = ir.Node("", op, inputs, ir.convenience.convert_attributes(attributes))
        node.name, value = take_name(f"{stem}_{op.lower()}_node", taken), node.outputs[0]
        value.name = take_name(f"{stem}_{op.lower()}", taken)
        value.shape, value.type = ir.Shape(sizes), ir.TensorType(ir.DataType.FLOAT)
        nodes.append(node)
        return value

    def constant(array: np.ndarray, name: str) -> ir.Value:
        return add_initializer(graph, ir.Tensor(np.ascontiguousarray(array), name=take_name(f"{stem}_{name}", taken)))

    value, sizes = add("Cast", [levels], shape, to=int(ir.DataType.FLOAT)), shape
    if block and axis is not None:
        sizes = blocked_sizes(shape, axis, block)
        value = add("Reshape", [value, constant(np.array(sizes, np.int64), "blocks")], sizes)
    zeros = constant_of(zero[0]) if zero else None
    if zeros is not None and np.any(zeros.astype(np.int32)):
        offsets = along(zeros.astype(np.float32), len(shape), axis, block)
        value = add("Sub", [value, constant(offsets, "zero_point")], sizes)
    value = add("Mul", [value, constant(along(factors, len(shape), axis, block), "scale")], sizes)
    nodes[-1].metadata_props.update(dequantizer.metadata_props)
    if sizes != shape:
        value = add("Reshape", [value, constant(np.array(shape, np.int64), "shape")], shape)
    graph.insert_after(dequantizer, nodes)
    for use in list(result.uses()):
        use.node.replace_input_with(use.idx, value)
    graph.remove(dequantizer, safe=True)
    result.name, value.name = None, stem
