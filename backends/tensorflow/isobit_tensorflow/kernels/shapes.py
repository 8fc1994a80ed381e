"""Kernels that move, cut, join and reduce."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from isobit.graph import Node
from isobit.graph.shape_inference import kept_axes
from isobit_tensorflow.axes import first_axes, last_axes
from isobit_tensorflow.kernels.operands import Constant, Operand, numbers

_END = 1 << 31


def _transpose(node: Node, x: Operand) -> Operand:
    """Between the two orders of axes nothing moves: the tensor is only called otherwise."""
    perm = tuple(node.attributes["perm"])
    if not isinstance(x, Constant) and x.rank > 2:
        if x.last and perm == last_axes(x.rank):
            return Operand(x.tensor)
        if not x.last and perm == first_axes(x.rank):
            return Operand(x.tensor, last=True)
    return Operand(tf.transpose(x.canonical(), perm))


def _reshape(node: Node, x: Operand) -> Operand:
    value, shape = x.canonical(), list(numbers(node.attributes["shape"]))
    unknown = [axis for axis, size in enumerate(shape) if size < 0]
    if len(unknown) > 1:
        # -1 can stand for one size: those before the last unknown one, the batch first, are the operand's own
        sizes = tf.shape(value)
        kept = kept_axes(value.shape.as_list(), shape) or range(len(shape))
        for axis in unknown[:-1]:
            shape[axis] = sizes[axis if kept[axis] is None else kept[axis]]
    return Operand(tf.reshape(value, shape))


def _concat(node: Node, *operands: Operand) -> Operand:
    axis = int(node.attributes["axis"])
    rank = operands[0].rank
    if rank > 2 and any(operand.last for operand in operands):
        order = last_axes(rank)
        return Operand(tf.concat([o.channels_last() for o in operands], order.index(axis % rank)), last=True)
    return Operand(tf.concat([operand.canonical() for operand in operands], axis))


def _slice(node: Node, x: Operand) -> Operand:
    a = node.attributes
    axes = numbers(a.get("axes", range(len(a["starts"]))))
    steps = numbers(a.get("steps", (1,) * len(axes)))
    index = [slice(None)] * x.rank
    order = list(x.axes or range(x.rank))
    for axis, start, end, step in zip(axes, numbers(a["starts"]), numbers(a["ends"]), steps, strict=True):
        stop = None if end >= _END or end <= -_END else end
        first = None if step < 0 and (start == -1 or start >= _END) else start
        index[order.index(axis % x.rank)] = slice(first, stop, step)
    return x.like(x.tensor[tuple(index)])


def _split(node: Node, x: Operand) -> list[Operand]:
    a = node.attributes
    order = list(x.axes or range(x.rank))
    axis = order.index(int(a.get("axis", 0)) % x.rank)
    return [x.like(part) for part in tf.split(x.tensor, list(numbers(a["split"])), axis)]


_MODES = {"reflect": "REFLECT", "constant": "CONSTANT"}


def _pad(node: Node, x: Operand) -> Operand:
    pads = numbers(node.attributes["pads"])
    pairs = [(pads[axis], pads[axis + x.rank]) for axis in (x.axes or range(x.rank))]
    fill = tf.cast(node.attributes.get("value", 0.0), x.tensor.dtype)
    return x.like(tf.pad(x.tensor, pairs, _MODES[node.attributes.get("mode", "constant")], constant_values=fill))


def _expand(node: Node, x: Operand) -> Operand:
    """To ``shape``; -1 keeps the size."""
    value = x.canonical()
    target = numbers(node.attributes["shape"])
    sizes = tf.concat([[1] * (len(target) - x.rank), tf.shape(value)], 0)
    return Operand(tf.broadcast_to(value, tf.stack([n if n >= 0 else sizes[i] for i, n in enumerate(target)])))


def _cumsum(node: Node, x: Operand) -> Operand:
    return Operand(tf.cumsum(x.canonical(), int(node.attributes["axis"])))


def _gather_elements(node: Node, x: Operand, indices: Operand) -> Operand:
    axis = int(node.attributes.get("axis", 0))
    return Operand(tf.experimental.numpy.take_along_axis(x.canonical(), indices.canonical(), axis))


def _tile(node: Node, x: Operand) -> Operand:
    return Operand(tf.tile(x.canonical(), list(numbers(node.attributes["repeats"]))))


def _reduce(function: Callable[..., tf.Tensor]) -> Callable[[Node, Operand], Operand]:
    def kernel(node: Node, x: Operand) -> Operand:
        keep = bool(node.attributes.get("keepdims", 1))
        axes: Sequence[int] = [axis % x.rank for axis in numbers(node.attributes.get("axes", range(x.rank)))]
        if not keep:
            return Operand(function(x.canonical(), list(axes)))
        order = list(x.axes or range(x.rank))
        return x.like(function(x.tensor, [order.index(axis) for axis in axes], keepdims=True))

    return kernel


def _arg(function: Callable[..., tf.Tensor]) -> Callable[[Node, Operand], Operand]:
    def kernel(node: Node, x: Operand) -> Operand:
        axis = int(node.attributes["axis"])
        indices = function(x.canonical(), axis, output_type=tf.int64)
        return Operand(tf.expand_dims(indices, axis) if node.attributes.get("keepdims", 1) else indices)

    return kernel


def _one_hot(node: Node, x: Operand) -> Operand:
    a = node.attributes
    return Operand(tf.one_hot(x.canonical(), int(a["depth"]), axis=int(a.get("axis", -1))))


SHAPES: Mapping[str, Callable[..., Any]] = {
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Concat": _concat,
    "Slice": _slice,
    "Split": _split,
    "Pad": _pad,
    "Expand": _expand,
    "Tile": _tile,
    "CumSum": _cumsum,
    "GatherElements": _gather_elements,
    "ArgMax": _arg(tf.argmax),
    "ArgMin": _arg(tf.argmin),
    "OneHot": _one_hot,
    "ReduceMean": _reduce(tf.reduce_mean),
    "ReduceSum": _reduce(tf.reduce_sum),
    "ReduceMax": _reduce(tf.reduce_max),
    "ReduceMin": _reduce(tf.reduce_min),
    "ReduceProd": _reduce(tf.reduce_prod),
}
