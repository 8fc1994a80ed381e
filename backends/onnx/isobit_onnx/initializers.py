"""Adding a constant to an onnx-ir graph, and changing one."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir


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
