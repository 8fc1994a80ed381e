"""Spectra: a Fourier transform of frames is a convolution by cosines and sines, which every runtime has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from isobit_tensorflow.read.call import Call, Rule
from isobit_tensorflow.read.rules.native import native_layer


def _mel_spectrogram(call: Call) -> Any:
    """As Keras computes it, with a convolution in the place of the transform."""
    layer = call.operation
    if call.x.rank != 2 or not call.x.is_float:
        return native_layer(call)
    bins = layer.fft_length // 2 + 1
    kernel, half = _transform(layer.fft_length, layer.sequence_length, layer.window), layer.fft_length // 2
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


def _stft(call: Call) -> Any:
    """The real and the imaginary part, (batch, frames, bins) each."""
    op = call.operation
    if call.x.rank != 2 or not call.x.is_float:
        return None
    bins, half = op.fft_length // 2 + 1, op.fft_length // 2 if op.center else 0
    kernel = _transform(op.fft_length, op.sequence_length, op.window)

    def frames(x: Any) -> tuple[Any, Any]:
        x = ops.pad(x, [(0, 0), (half, half)], mode="reflect") if half else x
        both = ops.conv(ops.expand_dims(x, -1), kernel, strides=op.sequence_stride, padding="valid")
        return both[..., :bins], -both[..., bins:]

    return call.reader.open(frames, call.name, call.args, {}, op)


def _rfft(call: Call) -> Any:
    """The real and the imaginary part of the last axis, as products with two matrices."""
    size = call.x.shape[-1]
    if not isinstance(size, int) or not call.x.is_float:
        return None
    length = call.operation.fft_length or size
    cosines, sines = np.split(_transform(length, length, None)[: min(size, length), 0], 2, axis=1)

    def parts(x: Any) -> tuple[Any, Any]:
        x = x[..., : min(size, length)]
        return ops.matmul(x, cosines), ops.matmul(x, -sines)

    return call.reader.open(parts, call.name, call.args, {}, call.operation)


def _transform(length: int, count: int, shape: Any) -> NDArray[np.float32]:
    """(samples, 1, 2 * bins): cosines, then sines, under a window of `count` samples: a name, an array or none."""
    window: Any = np.ones(count)
    if isinstance(shape, str):
        spread, base = (0.5, 0.5) if shape == "hann" else (0.46, 0.54)
        window = base - spread * np.cos(2 * np.pi * np.arange(count) / count)
    elif shape is not None:
        window = np.asarray(ops.convert_to_numpy(shape), np.float64)
    left = (length - count) // 2
    window = np.pad(window, (left, length - count - left))
    phase = 2 * np.pi * np.outer(np.arange(length), np.arange(length // 2 + 1)) / length
    waves = np.concatenate([np.cos(phase), np.sin(phase)], 1) * window[:, None]
    filters: NDArray[np.float32] = waves[:, None].astype(np.float32)
    return filters


LAYERS: Mapping[type, Rule] = (
    {keras.layers.MelSpectrogram: _mel_spectrogram} if hasattr(keras.layers, "MelSpectrogram") else {}
)

OPERATIONS: Mapping[str, Rule] = {"STFT": _stft, "RFFT": _rfft}
