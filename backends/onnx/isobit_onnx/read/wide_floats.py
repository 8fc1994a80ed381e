"""Networks whose layers are float16, bfloat16 or float64, computed in float32: quantizers are defined for that alone.

Inputs and outputs keep their types, between which and the network stands a Cast. What is of such a type and meets no
layer (sizes computed in float64) stays, in a model that has no layer of it.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from isobit_onnx.read.constant_expressions import LAYERS, VIEWS
from isobit_onnx.read.initializers import describe

#: Where a model says of which type its layers were, also in files written of it.
METADATA = "isobit.layers_were"

_OTHER = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})
#: Attributes that say the type of a result.
_TYPE_ATTRIBUTES = ("to", "dtype", "output_datatype")


def widen_floats(model: ir.Model) -> None:
    """Compute every type in which a layer has a weight in float32, in place."""
    types = {kind for graph in model.graphs() for node in graph if (kind := _layer_type(node)) is not None}
    if not types:
        return
    model.metadata_props[METADATA] = ", ".join(sorted(kind.name.lower().replace("double", "float64") for kind in types))
    _cast_outputs(model.graph, types)
    _cast_inputs(model.graph, types)
    kept = set(model.graph.inputs) | set(model.graph.outputs)
    for graph in model.graphs():
        for value in (*graph.inputs, *graph.initializers.values()):
            _widen(value, types, kept)
        for node in graph:
            if node.outputs[0] not in kept:
                _widen_attributes(node, types)
            for output in node.outputs:
                _widen(output, types, kept)


def _layer_type(node: ir.Node) -> ir.DataType | None:
    """The type of the weight of a layer, where that is not float32."""
    if node.op_type not in LAYERS or node.domain:
        return None
    for value in node.inputs:
        while value is not None:
            producer = value.producer()
            if producer is None or producer.op_type not in VIEWS - {"Cast"}:
                break
            value = producer.inputs[0]
        constant = _constant(value)
        if constant is not None and constant.dtype in _OTHER:
            return constant.dtype
    return None


def _constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    if value is None or value.const_value is not None:
        return None if value is None else value.const_value
    producer = value.producer()
    given = producer.attributes.get("value") if producer is not None and producer.op_type == "Constant" else None
    return given.as_tensor() if given is not None and given.type == ir.AttributeType.TENSOR else None


def _cast_inputs(graph: ir.Graph, types: set[ir.DataType]) -> None:
    for value in graph.inputs:
        if value.dtype not in types or not value.uses():
            continue
        cast = ir.Node("", "Cast", [value], [ir.AttrInt64("to", int(ir.DataType.FLOAT))], name=f"{value.name}/float32")
        result = cast.outputs[0]
        result.name, result.shape, result.type = cast.name, value.shape, ir.TensorType(ir.DataType.FLOAT)
        for use in list(value.uses()):
            if use.node is not cast:
                use.node.replace_input_with(use.idx, result)
        graph.insert_before(graph[0], [cast])


def _cast_outputs(graph: ir.Graph, types: set[ir.DataType]) -> None:
    for index, value in enumerate(graph.outputs):
        if value.dtype not in types or value.producer() is None or value.dtype is None:
            continue
        cast = ir.Node("", "Cast", [value], [ir.AttrInt64("to", int(value.dtype))], name=f"{value.name}/{value.dtype}")
        result = cast.outputs[0]
        result.name, result.shape, result.type = value.name, value.shape, ir.TensorType(value.dtype)
        graph.outputs[index] = result
        value.name = f"{value.name}/float32"
        graph.append(cast)


def _widen(value: ir.Value, types: set[ir.DataType], kept: set[ir.Value]) -> None:
    if value in kept:
        return
    if value.const_value is not None and value.const_value.dtype in types:
        value.const_value = _wide(value.const_value)
        describe(value, value.const_value)
    elif isinstance(value.type, ir.TensorType) and value.dtype in types:
        value.type = ir.TensorType(ir.DataType.FLOAT)
    elif isinstance(value.type, ir.SequenceType | ir.OptionalType) and value.dtype in types:
        value.dtype = ir.DataType.FLOAT


def _widen_attributes(node: ir.Node, types: set[ir.DataType]) -> None:
    for name, given in list(node.attributes.items()):
        if given.type == ir.AttributeType.TENSOR and given.as_tensor().dtype in types:
            node.attributes[name] = ir.AttrTensor(name, _wide(given.as_tensor()))
        elif name in _TYPE_ATTRIBUTES and given.type == ir.AttributeType.INT and given.as_int() in set(map(int, types)):
            node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.FLOAT))


def _wide(tensor: ir.TensorProtocol) -> ir.Tensor[np.ndarray]:
    return ir.Tensor(tensor.numpy().astype(np.float32), name=tensor.name)
