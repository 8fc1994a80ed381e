"""Normalisation layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from isobit.errors import ModelError
from isobit_tensorflow.read.call import Call, Rule
from isobit_tensorflow.read.emitter import Value


def _vector(call: Call, variable: Any, part: str, size: int | list[int], fill: float) -> str:
    """A variable, or a constant where the layer does without."""
    if variable is not None:
        return call.emitter.weight(variable, path=f"{call.name}/{part}")
    return call.emitter.constant(f"{call.name}/{part}", np.full(size, fill, np.float32))


def _channel_first(call: Call, axis: int) -> Value:
    """The input with its channel axis at 1."""
    x = call.x
    if axis % x.rank == x.rank - 1:
        return call.emitter.first(x)
    if axis % x.rank == 1:
        return call.emitter.plain(x)
    raise ModelError(f"{call.name!r} normalises axis {axis}: axis 1 and the last axis are read")


def _axis(layer: Any) -> int | None:
    axes = layer.axis if isinstance(layer.axis, list | tuple) else [layer.axis]
    return int(axes[0]) if len(axes) == 1 else None


def _batch_norm(call: Call) -> Value:
    layer, e = call.operation, call.emitter
    if call.argument(2) is not None:
        raise ModelError(f"{call.name!r} is called with a mask, which is not read")
    x = _channel_first(call, int(layer.axis))
    size = int(layer.moving_mean.shape[0])
    operands = [
        _vector(call, layer.gamma, "gamma", size, 1.0),
        _vector(call, layer.beta, "beta", size, 0.0),
        _vector(call, layer.moving_mean, "moving_mean", size, 0.0),
        _vector(call, layer.moving_variance, "moving_variance", size, 1.0),
    ]
    epsilon = float(layer.epsilon)
    result = e.emit("BatchNormalization", call.name, [x, *operands], x.shape, x.dtype, x.last, epsilon=epsilon)
    if layer.trainable:  # a frozen batch norm keeps its statistics in training
        e.momentum[result.name] = float(layer.momentum)
    return result


def _layer_norm(call: Call) -> Value | None:
    """Over the last axes."""
    layer, e = call.operation, call.emitter
    x = e.plain(call.x)
    axes = sorted(a % x.rank - x.rank for a in (layer.axis if isinstance(layer.axis, list | tuple) else [layer.axis]))
    if axes != list(range(-len(axes), 0)) or getattr(layer, "rms_scaling", False):
        return None
    sizes = x.shape[axes[0] :]
    full = [int(n) for n in sizes if n is not None]
    if len(full) != len(sizes):
        return None
    scale = _vector(call, layer.gamma, "gamma", full, 1.0)
    shift = _vector(call, layer.beta, "beta", full, 0.0)
    attributes = {"axis": axes[0], "epsilon": float(layer.epsilon)}
    return e.emit("LayerNormalization", call.name, [x, scale, shift], x.shape, x.dtype, **attributes)


def _group_norm(call: Call) -> Value | None:
    layer, e = call.operation, call.emitter
    axis = _axis(layer)
    if axis is None or layer.gamma is None or layer.beta is None:
        return None
    x = _channel_first(call, axis)
    channels = int(layer.gamma.shape[0])
    groups = channels if layer.groups == -1 else int(layer.groups)
    operands = [e.weight(layer.gamma), e.weight(layer.beta)]
    attributes = {"num_groups": groups, "epsilon": float(layer.epsilon)}
    return e.emit("GroupNormalization", call.name, [x, *operands], x.shape, x.dtype, x.last, **attributes)


def _rms_norm(call: Call) -> Value | None:
    layer, e = call.operation, call.emitter
    x = e.plain(call.x)
    if _axis(layer) not in (-1, x.rank - 1) or layer.scale is None:
        return None
    attributes = {"axis": -1, "epsilon": float(layer.epsilon)}
    return e.emit("RMSNormalization", call.name, [x, e.weight(layer.scale)], x.shape, x.dtype, **attributes)


LAYERS: Mapping[type, Rule] = {
    keras.layers.BatchNormalization: _batch_norm,
    keras.layers.LayerNormalization: _layer_norm,
    keras.layers.GroupNormalization: _group_norm,
    keras.layers.RMSNormalization: _rms_norm,
}
