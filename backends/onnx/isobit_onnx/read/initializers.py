"""Constants of an onnx-ir graph: adding one, changing one, and how large all of them are."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

#: Bytes of weights. Serialized protobufs end at 2 GiB; models above this keep their weights beside the graph.
PROTOBUF_LIMIT = 1_800_000_000

#: Bytes of weights, as float32, from which memory matters more than the seconds that another session takes.
LARGE_WEIGHTS = 256 << 20

#: Bytes. Smaller constants are settings of operations, which inference of shapes looks at.
SMALL_TENSOR = 1024


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all initializers."""
    return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)


def has_large_weights(model: ir.Model) -> bool:
    """Whether sessions should hold the weights, which onnxruntime turns to float32, no more often than they must."""
    constants = (value.const_value for value in model.graph.initializers.values())
    return sum(4 * tensor.size for tensor in constants if tensor is not None) > LARGE_WEIGHTS


def add_initializer(graph: ir.Graph, tensor: ir.Tensor[Any]) -> ir.Value:
    """The value of a new constant; the tensor has the name."""
    value = ir.Value(
        name=tensor.name,
        shape=ir.Shape([int(n) for n in tensor.shape if isinstance(n, int)]),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value


def describe(value: ir.Value, tensor: ir.TensorProtocol) -> None:
    """Give a constant the shape and element type of its tensor."""
    value.shape, value.dtype = ir.Shape([int(n) for n in tensor.shape if isinstance(n, int)]), tensor.dtype
