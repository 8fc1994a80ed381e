"""Shapes, dropout, preprocessing and wrappers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from isobit.errors import ModelError
from isobit_tensorflow.emitting import Value
from isobit_tensorflow.reading import Call, Rule
from isobit_tensorflow.rules_merging import broadcast
from isobit_tensorflow.rules_shapes import reshape


def _flatten(call: Call) -> Value:
    x = call.x
    if call.operation.data_format == "channels_first" and x.rank > 2:
        x = call.emitter.transposed(x, (0, *range(2, x.rank), 1), f"{call.name}/channels_last")
    inner = x.shape[1:]
    size = None if None in inner else math.prod(n for n in inner if n is not None)
    return reshape(call, x, (x.shape[0], size))


def _reshape(call: Call) -> Value:
    x = call.x
    return reshape(call, x, (x.shape[0], *(int(n) for n in call.operation.target_shape)))


def _permute(call: Call) -> Value:
    return call.emitter.transposed(call.x, (0, *(int(n) for n in call.operation.dims)), call.name)


def _repeat_vector(call: Call) -> Value:
    e, x, count = call.emitter, call.x, int(call.operation.n)
    wide = reshape(call, x, (x.shape[0], 1, x.shape[1]), f"{call.name}/wide")
    shape = (x.shape[0], count, x.shape[1])
    return e.emit("Tile", call.name, [e.plain(wide)], shape, x.dtype, repeats=(1, count, 1))


def _identity(call: Call) -> Any:
    return call.argument(0)


def _without_training(call: Call) -> Value:
    """An augmentation: it does nothing in inference, and is left out of the simulator's training too."""
    call.emitter.notes.append(f"{call.name}: {type(call.operation).__name__} acts in the original's training only")
    return call.x


def _dropout(call: Call) -> Value:
    layer, x = call.operation, call.x
    noise = None if layer.noise_shape is None else [-1 if n is None else int(n) for n in layer.noise_shape]
    return call.emitter.drop(x, call.name, layer.rate, layer.seed, noise)


def _spatial_dropout(call: Call) -> Value:
    layer, x = call.operation, call.x
    noise = [1] * x.rank
    noise[0] = -1
    noise[1 if getattr(layer, "data_format", "channels_last") == "channels_first" else -1] = -1
    return call.emitter.drop(x, call.name, layer.rate, layer.seed, noise)


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


_EVERY_STEP = (
    keras.layers.Dense, keras.layers.Activation, keras.layers.ReLU, keras.layers.LayerNormalization,
    keras.layers.Dropout, keras.layers.Embedding, keras.layers.Rescaling,
)  # fmt: skip


def _time_distributed(call: Call) -> Any:
    """A layer that treats steps alike is called on all of them; any other sees the steps as samples."""
    inner, x = call.operation.layer, call.x
    if isinstance(inner, _EVERY_STEP):
        return call.reader.apply(inner, f"{call.name}/{inner.name}", (x,), {})
    steps = x.shape[1]
    if steps is None:
        raise ModelError(f"{call.name!r}: TimeDistributed around {type(inner).__name__} needs a known number of steps")
    flat = _merged(call, x, x.shape[2:], f"{call.name}/steps")
    result = call.reader.apply(inner, f"{call.name}/{inner.name}", (flat,), {})
    if not isinstance(result, Value):
        raise ModelError(f"{call.name!r}: TimeDistributed around a layer with several results is not read")
    plain = call.emitter.plain(result)
    target = (-1, steps, *(-1 if n is None else n for n in plain.shape[1:]))
    shape = (x.shape[0], steps, *plain.shape[1:])
    return call.emitter.emit("Reshape", call.name, [plain], shape, plain.dtype, shape=target)


def _merged(call: Call, x: Value, inner: Sequence[int | None], name: str) -> Value:
    target = (-1, *(-1 if n is None else n for n in inner))
    return call.emitter.emit("Reshape", name, [call.emitter.plain(x)], (None, *inner), x.dtype, shape=target)


def _augmentations() -> list[type]:
    found = [getattr(keras.layers, name) for name in dir(keras.layers) if name.startswith("Random")]
    noise = [keras.layers.GaussianNoise, keras.layers.GaussianDropout, keras.layers.AlphaDropout]
    return [*found, *noise]


def _refused(reason: str) -> Rule:
    def rule(call: Call) -> Value:
        raise ModelError(f"{call.name!r} ({type(call.operation).__name__}): {reason}")

    return rule


LAYERS: Mapping[type, Rule] = {
    keras.layers.Flatten: _flatten,
    keras.layers.Reshape: _reshape,
    keras.layers.Permute: _permute,
    keras.layers.RepeatVector: _repeat_vector,
    keras.layers.Identity: _identity,
    keras.layers.ActivityRegularization: _identity,
    keras.layers.Dropout: _dropout,
    keras.layers.SpatialDropout1D: _spatial_dropout,
    keras.layers.SpatialDropout2D: _spatial_dropout,
    keras.layers.SpatialDropout3D: _spatial_dropout,
    keras.layers.Rescaling: _rescaling,
    keras.layers.Normalization: _normalization,
    keras.layers.TimeDistributed: _time_distributed,
    keras.layers.Masking: _refused("masks that layers hand on are not read: give the mask as a tensor"),
    **dict.fromkeys(_augmentations(), _without_training),
}
