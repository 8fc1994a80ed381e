"""Spectra: a Fourier transform of frames is a convolution by cosines and sines, which every runtime has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops
from numpy.typing import NDArray

from isobit_tensorflow.read.call import Call, Rule
from isobit_tensorflow.read.fourier import frame_places, transform
from isobit_tensorflow.read.rules.native import native_layer

#: Samples of a frame up to which its transform is a matrix, of 16 MB there.
_LONGEST = 2048


def _mel_spectrogram(call: Call) -> Any:
    """As Keras computes it, with a convolution in the place of the transform."""
    layer = call.operation
    if call.x.rank != 2 or not call.x.is_float:
        return native_layer(call)
    bins = layer.fft_length // 2 + 1
    kernel, half = _waves(layer), layer.fft_length // 2
    bands = ops.convert_to_numpy(
        layer.linear_to_mel_weight_matrix(
            num_mel_bins=layer.num_mel_bins,
            num_spectrogram_bins=bins,
            sampling_rate=layer.sampling_rate,
            lower_edge_hertz=layer.min_freq,
            upper_edge_hertz=layer.max_freq,
        )
    )

    def spectrogram(x: Any) -> Any:
        x = ops.expand_dims(ops.pad(x, [(0, 0), (half, half)], mode="reflect"), -1)
        both = ops.square(ops.conv(x, kernel, strides=layer.sequence_stride, padding="valid"))
        size = ops.sqrt(both[..., :bins] + both[..., bins:])
        mel = ops.matmul(size if layer.mag_exp == 1 else ops.power(size, layer.mag_exp), bands)
        return ops.swapaxes(_in_decibels(layer, mel) if layer.power_to_db else mel, -1, -2)

    return call.reader.open(spectrogram, call.name, call.args, {}, layer)


def _in_decibels(layer: Any, power: Any) -> Any:
    """At most `top_db` below the loudest of the batch."""
    reference = 10 * math.log10(max(abs(layer.ref_power), layer.min_power))
    level = ops.log(ops.maximum(power, layer.min_power)) * (10 / math.log(10)) - reference
    return ops.maximum(level, ops.max(level) - layer.top_db)


def _waves(layer: Any) -> NDArray[np.float32]:
    """(samples, 1, 2 * bins): the transform of frames whose window lies in their middle."""
    length, count = layer.fft_length, layer.sequence_length
    if layer.window is None:  # Keras gives the whole frame then, whatever the length of a sequence
        return transform(np.ones(length), length)[:, None]
    if isinstance(layer.window, str):
        # TensorFlow's own: of an odd length they are not periodic.
        window = getattr(tf.signal, f"{layer.window}_window")(count, dtype=tf.float64).numpy()
    else:
        window = np.asarray(ops.convert_to_numpy(layer.window), np.float64)
    left = (length - count) // 2
    return transform(np.pad(window, (left, length - count - left)), length)[:, None]


def _short_time(call: Call) -> Any:
    """``keras.ops.stft``: real and imaginary parts, (batch, frames, bins) each."""
    operation = call.operation
    if call.x.rank != 2 or not call.x.is_float:
        return None
    bins, waves, half = operation.fft_length // 2 + 1, _waves(operation), operation.fft_length // 2

    def parts(x: Any) -> Any:
        if operation.center:
            x = ops.pad(x, [(0, 0), (half, half)], mode="reflect")
        both = ops.conv(ops.expand_dims(x, -1), waves, strides=operation.sequence_stride, padding="valid")
        return both[..., :bins], both[..., bins:]

    return call.reader.open(parts, call.name, call.args, {}, operation)


def _of_frames(call: Call) -> Any:
    """``keras.ops.rfft`` of the last axis, by a matrix of moderate size."""
    size = call.x.shape[-1]
    if size is None or not call.x.is_float:
        return None
    length = call.operation.fft_length or size
    used, bins = min(size, length), length // 2 + 1
    if used > _LONGEST:
        return None
    waves = transform(np.ones(used), length)

    def parts(x: Any) -> Any:
        both = ops.matmul(x[..., :used] if used < size else x, waves)
        return both[..., :bins], both[..., bins:]

    return call.reader.open(parts, call.name, call.args, {}, call.operation)


def _frames(call: Call) -> Any:
    """``keras.ops.extract_sequences`` of a known size: values picked by their places."""
    size, operation = call.x.shape[-1], call.operation
    if size is None:
        return None
    places = frame_places(size, operation.sequence_length, operation.sequence_stride)
    return call.reader.open(lambda x: ops.take(x, places, axis=-1), call.name, call.args, {}, operation)


LAYERS: Mapping[type, Rule] = (
    {keras.layers.MelSpectrogram: _mel_spectrogram} if hasattr(keras.layers, "MelSpectrogram") else {}
)

OPERATIONS: Mapping[str, Rule] = {"ExtractSequences": _frames, "RFFT": _of_frames, "STFT": _short_time}
