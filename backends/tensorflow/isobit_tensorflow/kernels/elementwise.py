"""Kernels that work value by value, in whatever order the axes are stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from isobit.graph import Node
from isobit_tensorflow.kernels.operands import Constant, Operand


def _unary(function: Callable[[tf.Tensor], tf.Tensor]) -> Callable[[Node, Operand], Operand]:
    return lambda node, x: x.like(function(x.tensor))


def _attributed(function: Callable[[tf.Tensor, Mapping[str, Any]], tf.Tensor]) -> Callable[[Node, Operand], Operand]:
    return lambda node, x: x.like(function(x.tensor, node.attributes))


def _binary(function: Callable[..., tf.Tensor]) -> Callable[..., Operand]:
    def kernel(node: Node, *operands: Operand) -> Operand:
        tensors, last = aligned(operands)
        return Operand(function(*tensors), last)

    return kernel


def aligned(operands: tuple[Operand, ...]) -> tuple[list[tf.Tensor], bool]:
    """The tensors in one order of axes, for broadcasting, and whether that is channels last."""
    rank = max(operand.rank for operand in operands)
    last = rank > 2 and any(o.last and o.rank == rank for o in operands if not isinstance(o, Constant))
    if not last:
        return _one_type([operand.canonical() for operand in operands]), False
    return _one_type([_channels_last(operand, rank) for operand in operands]), True


def _channels_last(operand: Operand, rank: int) -> tf.Tensor:
    if operand.rank == rank:
        return operand.channels_last()
    value = operand.canonical()
    if operand.rank == 0:
        return value
    size = tf.shape(value) if None in value.shape else value.shape
    return Operand(tf.reshape(value, tf.concat([[1] * (rank - operand.rank), size], 0))).channels_last()


def _one_type(tensors: list[tf.Tensor]) -> list[tf.Tensor]:
    """Float constants follow the tensors: in mixed precision these are smaller."""
    floats = [t.dtype for t in tensors if t.dtype.is_floating]
    small = next((kind for kind in floats if kind != tf.float32), None)
    if small is None or len(floats) == 1:
        return tensors
    return [tf.cast(t, small) if t.dtype.is_floating else t for t in tensors]


def _clip(x: tf.Tensor, a: Mapping[str, Any]) -> tf.Tensor:
    low, high = a.get("min"), a.get("max")
    if low == 0 and high in (6, None):  # the two that TensorFlow fuses with the layer before
        return tf.nn.relu(x) if high is None else tf.nn.relu6(x)
    if low is not None:
        x = tf.maximum(x, tf.cast(low, x.dtype))
    return x if high is None else tf.minimum(x, tf.cast(high, x.dtype))


def _hard_sigmoid(x: tf.Tensor, a: Mapping[str, Any]) -> tf.Tensor:
    return tf.clip_by_value(x * tf.cast(a["alpha"], x.dtype) + tf.cast(a["beta"], x.dtype), 0, 1)


def _hard_swish(x: tf.Tensor) -> tf.Tensor:
    return x * tf.nn.relu6(x + tf.cast(3, x.dtype)) * tf.cast(1 / 6, x.dtype)


def _gelu(x: tf.Tensor, a: Mapping[str, Any]) -> tf.Tensor:
    return tf.nn.gelu(x, approximate=a.get("approximate", "none") == "tanh")


def _softmax(function: Callable[..., tf.Tensor]) -> Callable[[Node, Operand], Operand]:
    return lambda node, x: Operand(function(x.canonical(), axis=int(node.attributes.get("axis", -1))))


def _prelu(node: Node, x: Operand, slope: Constant) -> Operand:
    """One slope a channel (axis 1), or of any shape that broadcasts."""
    alpha = slope.canonical()
    if slope.rank == 1 and x.rank > 1 and alpha.shape[0] not in (1, None):
        shape = [1] * x.rank
        shape[-1 if x.last else 1] = -1
        alpha = tf.reshape(alpha, shape)
    elif x.last:
        alpha = _channels_last(slope, x.rank)
    return x.like(tf.nn.relu(x.tensor) - tf.cast(alpha, x.tensor.dtype) * tf.nn.relu(-x.tensor))


def _cast(node: Node, x: Operand) -> Operand:
    return x.like(tf.cast(x.tensor, str(node.attributes["to"])))


def _cumsum(node: Node, x: Operand) -> Operand:
    a = node.attributes
    options = {"exclusive": bool(a.get("exclusive", 0)), "reverse": bool(a.get("reverse", 0))}
    return Operand(tf.cumsum(x.canonical(), int(a["axis"]), **options))


def _mean(*tensors: tf.Tensor) -> tf.Tensor:
    return tf.add_n(list(tensors)) / tf.cast(len(tensors), tensors[0].dtype)


def _threshold(x: tf.Tensor, a: Mapping[str, Any]) -> tf.Tensor:
    return tf.where(x > tf.cast(a.get("alpha", 1.0), x.dtype), x, tf.zeros_like(x))


ELEMENTWISE: Mapping[str, Callable[..., Any]] = {
    **{
        op: _unary(function)
        for op, function in {
            "Relu": tf.nn.relu, "Sigmoid": tf.math.sigmoid, "Tanh": tf.math.tanh, "Swish": tf.nn.silu,
            "HardSwish": _hard_swish, "Selu": tf.nn.selu, "Softplus": tf.math.softplus, "Softsign": tf.nn.softsign,
            "Mish": lambda x: x * tf.math.tanh(tf.math.softplus(x)), "Exp": tf.exp, "Log": tf.math.log,
            "Sqrt": tf.sqrt, "Reciprocal": tf.math.reciprocal, "Neg": tf.negative, "Abs": tf.abs, "Erf": tf.math.erf,
            "Sin": tf.sin, "Cos": tf.cos, "Floor": tf.floor, "Ceil": tf.math.ceil, "Round": tf.math.rint,
            "Sign": tf.sign, "Not": tf.logical_not, "IsNaN": tf.math.is_nan, "Identity": tf.identity,
        }.items()
    },
    **{
        op: _attributed(function)
        for op, function in {
            "Clip": _clip, "HardSigmoid": _hard_sigmoid, "Gelu": _gelu, "ThresholdedRelu": _threshold,
            "LeakyRelu": lambda x, a: tf.nn.leaky_relu(x, a.get("alpha", 0.01)),
            "Elu": lambda x, a: tf.where(x > 0, x, a.get("alpha", 1.0) * tf.math.expm1(tf.minimum(x, 0))),
            "Celu": lambda x, a: tf.where(
                x > 0, x, a.get("alpha", 1.0) * tf.math.expm1(tf.minimum(x, 0) / a.get("alpha", 1.0))
            ),
        }.items()
    },
    **{
        op: _binary(function)
        for op, function in {
            "Add": tf.add, "Sub": tf.subtract, "Mul": tf.multiply, "Div": tf.divide, "Pow": tf.pow,
            "Max": lambda *t: t[0] if len(t) == 1 else tf.maximum(*t), "Min": lambda *t: tf.minimum(*t),
            "Mean": _mean, "Sum": lambda *t: tf.add_n(list(t)), "Where": tf.where, "Equal": tf.equal,
            "Greater": tf.greater, "Less": tf.less, "GreaterOrEqual": tf.greater_equal, "LessOrEqual": tf.less_equal,
            "And": tf.logical_and, "Or": tf.logical_or, "Xor": tf.math.logical_xor, "Mod": tf.math.floormod,
        }.items()
    },
    "Softmax": _softmax(tf.nn.softmax),
    "LogSoftmax": _softmax(tf.nn.log_softmax),
    "PRelu": _prelu,
    "Cast": _cast,
    "CumSum": _cumsum,
}  # fmt: skip
