"""Activations, given as layer, as function or by name: a node of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import keras
import numpy as np
from keras import ops

from isobit.graph import View
from isobit_tensorflow.read.call import Call, Rule, RuleReader
from isobit_tensorflow.read.emitter import Value
from isobit_tensorflow.read.rules.merging import constant_operand

Named = tuple[str, Mapping[str, Any]]

_HARD_SIGMOID: Named = ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5})

#: By the name of the function in keras.activations and keras.ops, lower case without underscores.
_KNOWN: Mapping[str, Named] = {
    "relu": ("Relu", {}), "relu6": ("Clip", {"min": 0.0, "max": 6.0}), "sigmoid": ("Sigmoid", {}),
    "tanh": ("Tanh", {}), "silu": ("Swish", {}), "swish": ("Swish", {}), "hardsigmoid": _HARD_SIGMOID,
    "hardsilu": ("HardSwish", {}), "hardswish": ("HardSwish", {}), "gelu": ("Gelu", {"approximate": "none"}),
    "softplus": ("Softplus", {}), "softsign": ("Softsign", {}), "selu": ("Selu", {}), "elu": ("Elu", {"alpha": 1.0}),
    "exponential": ("Exp", {}), "mish": ("Mish", {}), "leakyrelu": ("LeakyRelu", {"alpha": 0.2}),
    "softmax": ("Softmax", {"axis": -1}), "logsoftmax": ("LogSoftmax", {"axis": -1}), "celu": ("Celu", {"alpha": 1.0}),
}  # fmt: skip


def activate(reader: RuleReader, function: Any, value: Value, name: str) -> Value:
    """`value` through an activation argument; its node is ``<layer>/<activation>``."""
    if function is None or function is keras.activations.linear:
        return value
    if isinstance(function, keras.layers.Layer):
        activated: Value = reader.apply(function, f"{name}/{reader.name_of(function)}", (value,), {})
        return activated
    label = getattr(function, "__name__", type(function).__name__)
    named = _KNOWN.get(label.replace("_", "").lower())
    if named is not None and _is_keras(function):
        return unary(reader, f"{name}/{label}", value, *named)
    opened: Value = reader.open(function, f"{name}/{label}", (value,), {}, function)
    return opened


_OF_WHOLE_NUMBERS = frozenset({"Abs", "Clip", "Identity", "Neg", "Not", "Relu", "Sign"})


def _is_keras(function: Any) -> bool:
    return str(getattr(function, "__module__", "")).startswith("keras.src.")


def unary(reader: RuleReader, name: str, value: Value, op: str, attributes: Mapping[str, Any]) -> Value:
    """A node that works value by value; softmax works along the last axis of Keras."""
    if "axis" in attributes:
        value = reader.emitter.plain(value)
    if not value.is_float and op not in _OF_WHOLE_NUMBERS:  # these give floats of whole numbers in Keras
        value = reader.emitter.emit("Cast", f"{name}/float", [value], value.shape, "float32", value.last, to="float32")
    return reader.emitter.emit(op, name, [value], value.shape, value.dtype, value.last, **attributes)


def _simple(op: str, **attributes: Any) -> Rule:
    return lambda call: unary(call.reader, call.name, call.x, op, attributes)


def _from(op: str, **settings: str) -> Rule:
    """Attributes from settings of the layer or operation, as floats."""

    def rule(call: Call) -> Value:
        attributes = {name: float(np.asarray(call.setting(setting))) for name, setting in settings.items()}
        return unary(call.reader, call.name, call.x, op, attributes)

    return rule


def _activation(call: Call) -> Value:
    function = call.operation.activation
    label = getattr(function, "__name__", "")
    named = _KNOWN.get(label.replace("_", "").lower())
    if named is not None and _is_keras(function):
        return unary(call.reader, call.name, call.x, *named)
    return activate(call.reader, function, call.x, call.name)


def _relu(call: Call) -> Value | None:
    """Relu, LeakyRelu or Clip; a threshold, or a slope below a maximum, is opened."""
    layer = call.operation
    slope, threshold, top = (float(layer.negative_slope or 0), float(layer.threshold or 0), layer.max_value)
    if threshold or (slope and top is not None):
        return None
    if top is not None:
        return unary(call.reader, call.name, call.x, "Clip", {"min": 0.0, "max": float(top)})
    if slope:
        return unary(call.reader, call.name, call.x, "LeakyRelu", {"alpha": slope})
    return unary(call.reader, call.name, call.x, "Relu", {})


def _prelu(call: Call) -> Value:
    """One slope a channel is (C); other shapes keep their axes."""
    e, x, alpha = call.emitter, call.x, call.operation.alpha
    shape = tuple(alpha.shape)
    if x.rank > 2 and all(size == 1 for size in shape[:-1]):
        x = e.first(x)
        slope = e.weight(alpha, (View((shape[-1],), shape),))
    else:
        slope = constant_operand(call, alpha, x, 1)
    return e.emit("PRelu", call.name, [x, slope], x.shape, x.dtype, x.last)


def softmax(op: str) -> Rule:
    """Along one axis."""

    def rule(call: Call) -> Any:
        axis = call.setting("axis", -1)
        if isinstance(axis, Sequence) and len(axis) == 1:
            (axis,) = axis
        if not isinstance(axis, int):
            return None
        mask = call.argument(1)
        if mask is not None:
            return call.reader.open(partial(_masked, axis=axis), call.name, (call.x, mask), {}, call.operation)
        x = call.emitter.plain(call.x)
        axis = axis - x.rank if axis >= 0 else axis
        return call.emitter.emit(op, call.name, [x], x.shape, x.dtype, axis=axis)

    return rule


def _masked(x: Any, mask: Any, axis: int) -> Any:
    """As `keras.layers.Softmax` computes it, which asks the backend for what symbolic tensors need `keras.ops`."""
    if keras.backend.standardize_dtype(mask.dtype) != "bool":
        mask = ops.greater(mask, 0.5)
    lowest = -3e4 if keras.backend.standardize_dtype(x.dtype) == "float16" else -1e9
    return ops.where(mask, ops.softmax(ops.where(mask, x, lowest), axis), 0.0)


def _gelu(call: Call) -> Value:
    approximate = "tanh" if call.setting("approximate", True) else "none"
    return unary(call.reader, call.name, call.x, "Gelu", {"approximate": approximate})


def _clip(call: Call) -> Value | None:
    low, high = call.setting("x_min"), call.setting("x_max")
    if any(isinstance(bound, Value) for bound in (low, high)):
        return None
    bounds = {"min": low, "max": high}
    attributes = {name: float(np.asarray(bound)) for name, bound in bounds.items() if bound is not None}
    return unary(call.reader, call.name, call.x, "Clip", attributes)


LAYERS: Mapping[type, Rule] = {
    keras.layers.Activation: _activation,
    keras.layers.ReLU: _relu,
    keras.layers.LeakyReLU: _from("LeakyRelu", alpha="negative_slope"),
    keras.layers.ELU: _from("Elu", alpha="alpha"),
    keras.layers.PReLU: _prelu,
    keras.layers.Softmax: softmax("Softmax"),
}

_PLAIN = {
    "Relu": "Relu", "Sigmoid": "Sigmoid", "Tanh": "Tanh", "Silu": "Swish", "HardSilu": "HardSwish", "Selu": "Selu",
    "Softplus": "Softplus", "Softsign": "Softsign", "Exp": "Exp", "Log": "Log", "Sqrt": "Sqrt", "Negative": "Neg",
    "Reciprocal": "Reciprocal", "Absolute": "Abs", "Abs": "Abs", "Erf": "Erf", "Sin": "Sin", "Cos": "Cos",
    "Floor": "Floor", "Ceil": "Ceil", "Sign": "Sign", "Identity": "Identity", "Copy": "Identity",
    "StopGradient": "Identity", "LogicalNot": "Not", "Mish": "Mish",
}  # fmt: skip

OPERATIONS: Mapping[str, Callable[[Call], Any]] = {
    **{kind: _simple(op) for kind, op in _PLAIN.items()},
    "Relu6": _simple("Clip", min=0.0, max=6.0),
    "HardSigmoid": _simple("HardSigmoid", alpha=1 / 6, beta=0.5),
    "LeakyRelu": _from("LeakyRelu", alpha="negative_slope"),
    "Elu": _from("Elu", alpha="alpha"),
    "Celu": _from("Celu", alpha="alpha"),
    "Gelu": _gelu,
    "Clip": _clip,
    "Softmax": softmax("Softmax"),
    "LogSoftmax": softmax("LogSoftmax"),
}
