"""Preprocessing that a model does itself: Rescaling and Normalization."""

from __future__ import annotations

from collections.abc import Mapping

import keras
import numpy as np

from isobit.errors import ModelError
from isobit_tensorflow.read.call import Call, Rule
from isobit_tensorflow.read.emitter import Value
from isobit_tensorflow.read.rules.merging import broadcast


def _rescaling(call: Call) -> Value:
    layer = call.operation
    scale, offset = np.asarray(layer.scale, np.float32), np.asarray(layer.offset, np.float32)
    x: Value = _as_float(call, call.x)
    shifted = bool(np.any(offset != 0))
    x = broadcast(call, "Mul", [x, scale], f"{call.name}/scale" if shifted else call.name)
    return broadcast(call, "Add", [x, offset]) if shifted else x


def _normalization(call: Call) -> Value:
    """``(x - mean) / sqrt(variance)`` with the constants that were adapted or given."""
    layer, x = call.operation, _as_float(call, call.x)
    if getattr(layer, "mean", None) is None:
        raise ModelError(f"{call.name!r}: the Normalization layer has no statistics: call adapt, or give them")
    mean = np.asarray(keras.ops.convert_to_numpy(layer.mean), np.float32)
    spread = np.sqrt(np.asarray(keras.ops.convert_to_numpy(layer.variance), np.float32))
    spread = np.maximum(spread, np.float32(keras.config.epsilon()))
    mean, spread = (v.reshape(v.shape[1:]) if v.ndim == x.rank else v for v in (mean, spread))
    if layer.invert:
        scaled = broadcast(call, "Mul", [x, spread], f"{call.name}/scale")
        return broadcast(call, "Add", [scaled, mean])
    centered = broadcast(call, "Sub", [x, mean], f"{call.name}/centered")
    return broadcast(call, "Div", [centered, spread])


def _as_float(call: Call, x: Value) -> Value:
    if x.is_float:
        return x
    return call.emitter.emit("Cast", f"{call.name}/float", [x], x.shape, "float32", x.last, to="float32")


LAYERS: Mapping[type, Rule] = {
    keras.layers.Rescaling: _rescaling,
    keras.layers.Normalization: _normalization,
}
