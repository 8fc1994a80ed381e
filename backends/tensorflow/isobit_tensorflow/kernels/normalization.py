"""Kernels of normalisation with the statistics of training or of the data itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from isobit.graph import Node
from isobit_tensorflow.kernels.operands import Constant, Operand


def _along_channels(value: tf.Tensor, x: Operand) -> tf.Tensor:
    """A vector with one number a channel, shaped for broadcasting."""
    shape = [1] * x.rank
    shape[-1 if x.last else 1] = -1
    return tf.reshape(value, shape)


def batch_norm(node: Node, x: Operand, scale: Constant, shift: Constant, mean: Any, variance: Any) -> Operand:
    """Normalisation of axis 1 by `mean` and `variance`, operands or tensors."""
    value = tf.cast(x.tensor, tf.float32)
    center, spread = (v.canonical() if isinstance(v, Operand) else v for v in (mean, variance))
    inverse = tf.math.rsqrt(tf.cast(spread, tf.float32) + node.attributes["epsilon"]) * _float(scale)
    offset = _float(shift) - tf.cast(center, tf.float32) * inverse
    result = value * _along_channels(inverse, x) + _along_channels(offset, x)
    return x.like(tf.cast(result, x.tensor.dtype))


def batch_moments(x: Operand) -> tuple[tf.Tensor, tf.Tensor]:
    """Mean and variance of each channel of a batch."""
    channel = x.rank - 1 if x.last else 1
    axes = [axis for axis in range(x.rank) if axis != channel]
    moments: tuple[tf.Tensor, tf.Tensor] = tf.nn.moments(tf.cast(x.tensor, tf.float32), axes)
    return moments


def _layer_norm(node: Node, x: Operand, scale: Constant | None = None, shift: Constant | None = None) -> Operand:
    """Over the axes from ``axis`` to the last, or over ``axes``."""
    value = tf.cast(x.canonical(), tf.float32)
    axes = _axes(node)
    mean, variance = tf.nn.moments(value, axes, keepdims=True)
    result = (value - mean) * tf.math.rsqrt(variance + node.attributes["epsilon"])
    return Operand(tf.cast(_affine(result, scale, shift, axes[-1]), x.canonical().dtype))


def _rms_norm(node: Node, x: Operand, scale: Constant | None = None) -> Operand:
    value = tf.cast(x.canonical(), tf.float32)
    axes = _axes(node)
    power = tf.reduce_mean(tf.square(value), axes, keepdims=True)
    result = value * tf.math.rsqrt(power + node.attributes["epsilon"])
    return Operand(tf.cast(_affine(result, scale, None, axes[-1]), x.canonical().dtype))


def _axes(node: Node) -> list[int]:
    """The axes that are normalised together, counted from the end."""
    return [int(axis) for axis in node.attributes.get("axes", range(int(node.attributes["axis"]), 0))]


def _group_norm(node: Node, x: Operand, scale: Constant | None = None, shift: Constant | None = None) -> Operand:
    """Over groups of channels (axis 1) and all space; scale and shift have one number a channel."""
    value = tf.cast(x.channels_last() if x.rank > 2 else x.canonical(), tf.float32)
    channels, groups = value.shape[-1], int(node.attributes["num_groups"])
    shape = tf.shape(value)
    split = tf.reshape(value, tf.concat([shape[:-1], [groups, channels // groups]], 0))
    axes = [*range(1, x.rank - 1), x.rank]
    mean, variance = tf.nn.moments(split, axes, keepdims=True)
    result = tf.reshape((split - mean) * tf.math.rsqrt(variance + node.attributes["epsilon"]), shape)
    result.set_shape(value.shape)
    return Operand(tf.cast(_affine(result, scale, shift), x.tensor.dtype), last=x.rank > 2)


def _instance_norm(node: Node, x: Operand, scale: Constant | None = None, shift: Constant | None = None) -> Operand:
    value = tf.cast(x.channels_last(), tf.float32)
    mean, variance = tf.nn.moments(value, list(range(1, x.rank - 1)), keepdims=True)
    result = (value - mean) * tf.math.rsqrt(variance + node.attributes["epsilon"])
    return Operand(tf.cast(_affine(result, scale, shift), x.tensor.dtype), last=True)


def _affine(value: tf.Tensor, scale: Constant | None, shift: Constant | None, last: int = -1) -> tf.Tensor:
    """`last` is the last axis that the constants have, counted from the end."""
    value = value if scale is None else value * _in_front_of(_float(scale), -1 - last)
    return value if shift is None else value + _in_front_of(_float(shift), -1 - last)


def _in_front_of(vector: tf.Tensor, axes: int) -> tf.Tensor:
    return tf.reshape(vector, [*vector.shape, *[1] * axes]) if axes else vector


def _float(constant: Constant) -> tf.Tensor:
    return tf.cast(constant.canonical(), tf.float32)


NORMALIZATION: Mapping[str, Callable[..., Any]] = {
    "BatchNormalization": batch_norm,
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _rms_norm,
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
}
