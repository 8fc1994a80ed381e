"""Preprocessing that a model does itself: Rescaling, Normalization, cropping; the rest runs as Keras runs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from isobit.errors import ModelError
from isobit_tensorflow.read.call import Call, Rule
from isobit_tensorflow.read.emitter import Value
from isobit_tensorflow.read.rules.merging import broadcast
from isobit_tensorflow.read.rules.native import native_layer


def _rescaling(call: Call) -> Value:
    layer = call.operation
    scale, offset = np.asarray(layer.scale, np.float32), np.asarray(layer.offset, np.float32)
    x: Value = as_float(call, call.x)
    shifted = bool(np.any(offset != 0))
    x = broadcast(call, "Mul", [x, scale], f"{call.name}/scale" if shifted else call.name)
    return broadcast(call, "Add", [x, offset]) if shifted else x


def _normalization(call: Call) -> Value:
    """``(x - mean) / sqrt(variance)`` with the constants that were adapted or given."""
    layer, x = call.operation, as_float(call, call.x)
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


def as_float(call: Call, x: Value) -> Value:
    """The value, numbers of another type as float32."""
    if x.is_float:
        return x
    return call.emitter.emit("Cast", f"{call.name}/float", [x], x.shape, "float32", x.last, to="float32")


def _center_crop(call: Call) -> Any:
    """A slice, where the image is not smaller than the crop; else Keras resizes it first."""
    layer, x = call.operation, as_float(call, call.x)
    first = layer.data_format == "channels_first"
    axes = tuple(axis % x.rank for axis in ((-2, -1) if first else (-3, -2)))
    sizes = [x.shape[axis] for axis in axes]
    wanted = (int(layer.height), int(layer.width))
    if any(size is None or size < crop for size, crop in zip(sizes, wanted, strict=True)):
        return native_layer(call)
    starts = tuple(int((size or 0) - crop) // 2 for size, crop in zip(sizes, wanted, strict=True))
    ends = tuple(start + crop for start, crop in zip(starts, wanted, strict=True))
    shape = [dict(zip(axes, wanted, strict=True)).get(axis, n) for axis, n in enumerate(x.shape)]
    cut = {"starts": starts, "ends": ends, "axes": axes, "steps": (1, 1)}
    return call.emitter.emit("Slice", call.name, [call.emitter.plain(x)], shape, x.dtype, **cut)


def _pipeline(call: Call) -> Any:
    """Its layers one after the other."""
    value = call.argument(0)
    for layer in call.operation.layers:
        value = call.reader.apply(layer, f"{call.name}/{call.reader.name_of(layer)}", (value,), {})
    return value


#: Without weights and the same in every run: each is one node that runs as Keras runs it and stays in float.
_AS_THEY_ARE = (
    "AutoContrast", "ContrastLimitedAdaptiveHistogramEqualization", "Equalization", "HashedCrossing", "Hashing",
    "MaxNumBoundingBoxes", "Resizing", "STFTSpectrogram",
)  # fmt: skip


def _present(names: Sequence[str]) -> list[type]:
    """The classes of these names that the installed Keras has."""
    return [getattr(keras.layers, name) for name in names if hasattr(keras.layers, name)]


LAYERS: Mapping[type, Rule] = {
    keras.layers.Rescaling: _rescaling,
    keras.layers.Normalization: _normalization,
    keras.layers.CenterCrop: _center_crop,
    **dict.fromkeys(_present(("Pipeline",)), _pipeline),
    **dict.fromkeys(_present(_AS_THEY_ARE), native_layer),
}
