"""Functions of TensorFlow for spectra that are called with symbolic tensors, by operations of `keras.ops`.

ONNX and the neutral vocabulary have no complex numbers: a symbolic tensor that is known to be made of a real and an
imaginary part carries them, and what is asked of it is computed from them. What else is done with complex numbers runs
as TensorFlow runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from isobit_tensorflow.kernels.tensorflow_function import TensorFlowFunction
from isobit_tensorflow.read.fourier import frame_places, transform


def _of_parts(real: Any, imag: Any) -> Any:
    tensor = _as_tensorflow("math_ops:complex", real, imag)
    tensor.isobit_parts = real, imag
    return tensor


def _absolute(x: Any) -> Any:
    if not str(x.dtype).startswith("complex"):
        return ops.abs(x)
    parts = _parts(x)
    return _as_tensorflow("math_ops:abs", x) if parts is None else ops.sqrt(ops.square(parts[0]) + ops.square(parts[1]))


def _part(index: int) -> Callable[..., Any]:
    def take(input: Any) -> Any:
        parts = _parts(input)
        if parts is None:
            return NotImplemented
        part, other = parts[index], parts[1 - index]
        is_whole = isinstance(part, keras.KerasTensor) and part.shape == input.shape
        return part if is_whole else ops.zeros_like(other) + part  # a number beside a tensor is a part of its shape

    return take


def _angle(input: Any) -> Any:
    parts = _parts(input)
    return NotImplemented if parts is None else ops.arctan2(parts[1], parts[0])


def _parts(x: Any) -> Any:
    return getattr(x, "isobit_parts", None)


def _as_tensorflow(function: str, *operands: Any) -> Any:
    return TensorFlowFunction(f"tensorflow.python.ops.{function}")(*operands)


def _stft(
    signals: Any, frame_length: Any, frame_step: Any, fft_length: Any = None, window_fn: Any = tf.signal.hann_window
) -> Any:
    """Frames from the start of the signal, whose windows begin them, (batch, frames, bins)."""
    numbers = (frame_length, frame_step, *(() if fft_length is None else (fft_length,)))
    if len(signals.shape) != 2 or signals.dtype != "float32" or not all(isinstance(n, int) for n in numbers):
        return NotImplemented
    length = 2 ** (frame_length - 1).bit_length() if fft_length is None else fft_length
    if length < frame_length:
        return NotImplemented
    window = np.ones(frame_length) if window_fn is None else np.asarray(window_fn(frame_length, dtype=tf.float32))
    waves, bins = transform(window.astype(np.float64), length)[:, None], length // 2 + 1
    both = ops.conv(ops.expand_dims(signals, -1), waves, strides=frame_step, padding="valid")
    return _of_parts(both[..., :bins], both[..., bins:])


def _frame(signal: Any, frame_length: Any, frame_step: Any, axis: int = -1) -> Any:
    size = signal.shape[-1]
    if axis not in (-1, len(signal.shape) - 1) or not all(isinstance(n, int) for n in (size, frame_length, frame_step)):
        return NotImplemented
    return ops.take(signal, frame_places(size, frame_length, frame_step), axis=-1)


#: By the function's name in TensorFlow, as in `tensorflow_calls`.
SPECTRA: Mapping[str, Callable[..., Any]] = {
    "abs": _absolute, "angle": _angle, "complex": _of_parts, "frame": _frame, "imag": _part(1), "real": _part(0),
    "stft": _stft,
}  # fmt: skip
