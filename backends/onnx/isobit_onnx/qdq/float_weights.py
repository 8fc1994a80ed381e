"""Layers with a float weight beside a quantized activation, in a form that onnxruntime leaves as it is.

onnxruntime (1.32, WeightBiasQuantization) makes up an int8 quantizer for a float weight between a DequantizeLinear and
a QuantizeLinear. It looks only at layers whose bias is an initializer, or that have none. So the bias is written as
integers behind a DequantizeLinear that give its very floats: mantissas of 24 bits, each scaled by a power of two.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from isobit_onnx.read.initializers import add_initializer

#: The ending of the name of the integers; readers of QDQ files know by it that nothing is quantized there.
MANTISSAS = "_mantissas"

_LAYERS = ("Conv", "ConvTranspose", "Gemm")
_BITS = 24
_SMALLEST_EXPONENT = -126  # of a float32 that is not subnormal


def keep_float_weights(model: ir.Model) -> None:
    """Give every such layer of a QDQ model a bias that keeps its weight in float, in place.

    Biases below 2e-31 lose bits, and no others.
    """
    for node in list(model.graph):
        if not _has_float_weight(node):
            continue
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is None:
            outputs = _outputs(node)
            if outputs is None:
                continue
            values = np.zeros(outputs, np.float32)
        elif _is_constant(bias) and bias.const_value is not None and bias.const_value.numpy().ndim == 1:
            values = bias.const_value.numpy()
        else:
            continue  # a bias that is computed, or broadcast, is left alone
        if values.dtype == np.float32 and np.all(np.isfinite(values)):
            _write_bias(model.graph, node, values)


def _has_float_weight(node: ir.Node) -> bool:
    """Whether a layer reads a dequantized activation and a float constant, or what is folded to one, as its weight."""
    if node.op_type not in _LAYERS or node.domain not in ("", "ai.onnx") or len(node.inputs) < 2:
        return False
    data, weight = node.inputs[0], node.inputs[1]
    producer = data.producer() if data is not None else None
    if producer is None or producer.op_type != "DequantizeLinear" or weight is None:
        return False
    return _is_folded(weight) and weight.dtype in (ir.DataType.FLOAT, None)


def _is_folded(value: ir.Value) -> bool:
    """Whether onnxruntime makes an initializer of a value: it folds all but a DequantizeLinear."""
    producer = value.producer()
    if producer is None:
        return _is_constant(value)
    is_folded = producer.op_type != "DequantizeLinear" and len(producer.inputs) > 0
    return is_folded and all(source is None or _is_folded(source) for source in producer.inputs)


def _is_constant(value: ir.Value) -> bool:
    return value.is_initializer() and not value.is_graph_input()


def _outputs(node: ir.Node) -> int | None:
    """The number of output channels of a layer, None where the shape of its weight is unknown."""
    weight = node.inputs[1]
    if weight is None or weight.shape is None:
        return None
    axis = 0
    if node.op_type == "ConvTranspose" or (node.op_type == "Gemm" and not _attribute(node, "transB", 0)):
        axis = 1
    size = weight.shape[axis]
    groups = _attribute(node, "group", 1) if node.op_type == "ConvTranspose" else 1
    return size * groups if isinstance(size, int) else None


def _attribute(node: ir.Node, name: str, default: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default


def _write_bias(graph: ir.Graph, node: ir.Node, values: NDArray[np.float32]) -> None:
    exponents = np.maximum(np.frexp(values)[1] - _BITS, _SMALLEST_EXPONENT)
    mantissas = np.rint(np.ldexp(values.astype(np.float64), -exponents)).astype(np.int32)
    stem = f"{node.outputs[0].name}_bias"
    while f"{stem}{MANTISSAS}" in graph.initializers:
        stem += "_"
    stored = add_initializer(graph, ir.Tensor(mantissas, name=f"{stem}{MANTISSAS}"))
    scale = add_initializer(graph, ir.Tensor(np.ldexp(np.float32(1), exponents), name=f"{stem}_powers"))
    exact = ir.Node("", "DequantizeLinear", [stored, scale], [ir.AttrInt64("axis", 0)], name=f"{stem}_exact_node")
    result = exact.outputs[0]
    result.name = f"{stem}_exact"
    result.shape, result.type = ir.Shape(values.shape), ir.TensorType(ir.DataType.FLOAT)
    graph.insert_before(graph[0], [exact])
    if len(node.inputs) < 3:
        node.resize_inputs(3)
    node.replace_input_with(2, result)
