"""Kernels of products: linear layers, matrix products, look-ups."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from isobit.graph import Node
from isobit_tensorflow.kernels.operands import Constant, Operand


def _linear(node: Node, x: Operand, weight: Constant, bias: Constant | None = None) -> Operand:
    """The last axis times a weight (out, in); more axes than two become rows."""
    value = x.canonical()
    kernel = tf.cast(weight.form((1, 0)), value.dtype)
    rows = value if x.rank == 2 else tf.reshape(value, (-1, value.shape[-1]))
    result = tf.linalg.matmul(rows, kernel)
    if bias is not None:
        result = tf.nn.bias_add(result, tf.cast(bias.canonical(), value.dtype))
    if x.rank != 2:
        result = tf.reshape(result, tf.concat([tf.shape(value)[:-1], [kernel.shape[-1]]], 0))
        result.set_shape((*value.shape[:-1], kernel.shape[-1]))
    return Operand(result)


def _matmul(node: Node, a: Operand, b: Operand) -> Operand:
    """A product of tensors, times ``scale``; a constant of several matrices is (batch, out, in)."""
    left, right = _matrix(a, 0), _matrix(b, 1)
    result = tf.linalg.matmul(left, tf.cast(right, left.dtype))
    scale = node.attributes.get("scale")
    return Operand(result if scale is None else result * tf.cast(scale, result.dtype))


def _matrix(operand: Operand, index: int) -> tf.Tensor:
    if index == 1 and isinstance(operand, Constant) and operand.rank > 2:
        rank = operand.rank
        return operand.form((*range(rank - 2), rank - 1, rank - 2))
    return operand.canonical()


def _gather(node: Node, table: Operand, indices: Operand) -> Operand:
    """Indices below 0 count from the end, as in ONNX; those of an embedding are not."""
    axis = int(node.attributes.get("axis", 0))
    value, places = table.canonical(), indices.canonical()
    if not isinstance(table, Constant):
        places = tf.where(places < 0, places + tf.cast(tf.shape(value)[axis], places.dtype), places)
    return Operand(tf.gather(value, places, axis=axis))


PRODUCTS: Mapping[str, Callable[..., Any]] = {"Linear": _linear, "MatMul": _matmul, "Gather": _gather}
