"""What acts in training only: dropout, which the simulator keeps; augmentation and noise, which it leaves out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from isobit_tensorflow.read.call import Call, Rule
from isobit_tensorflow.read.emitter import Value
from isobit_tensorflow.read.rules.preprocessing import as_float


def _identity(call: Call) -> Any:
    return call.argument(0)


def _without_training(call: Call) -> Any:
    """An augmentation: it does nothing in inference, and is left out of the simulator's training too."""
    call.emitter.notes.append(f"{call.name}: {type(call.operation).__name__} acts in the original's training only")
    image = call.argument(0)
    return as_float(call, image) if isinstance(image, Value) else image


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


def _augmentations() -> list[type]:
    names = [name for name in dir(keras.layers) if name.startswith("Random")]
    mixing = ("AugMix", "CutMix", "MixUp", "RandAugment", "Solarization")  # newer versions of Keras have them
    augmentations = [getattr(keras.layers, name) for name in (*names, *mixing) if hasattr(keras.layers, name)]
    noise = [keras.layers.GaussianNoise, keras.layers.GaussianDropout, keras.layers.AlphaDropout]
    return [*augmentations, *noise]


LAYERS: Mapping[type, Rule] = {
    keras.layers.Identity: _identity,
    keras.layers.ActivityRegularization: _identity,
    keras.layers.Dropout: _dropout,
    keras.layers.SpatialDropout1D: _spatial_dropout,
    keras.layers.SpatialDropout2D: _spatial_dropout,
    keras.layers.SpatialDropout3D: _spatial_dropout,
    **dict.fromkeys(_augmentations(), _without_training),
}
