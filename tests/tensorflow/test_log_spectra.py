"""Front ends of audio in Keras: quiet parts are looked at as much as loud ones, however they are written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L
from keras import ops
from numpy.typing import NDArray

import isobit
from isobit_tensorflow.backend import TensorFlowBackend

FRAME, HOP, BANDS, SAMPLES = 64, 32, 12, 1024
BINS = FRAME // 2 + 1


def squares(re: Any, im: Any) -> Any:
    return ops.square(re) + ops.square(im)


#: Powers or magnitudes of the spectra of frames, (batch, frames, bins), from (batch, samples).
SPECTRA: dict[str, Callable[[Any], Any]] = {
    "keras": lambda x: squares(*ops.stft(x, FRAME, HOP, FRAME)),
    "keras, not centred": lambda x: ops.sqrt(squares(*ops.stft(x, 50, HOP, FRAME, "hamming", center=False))),
    "frames": lambda x: ops.hypot(*ops.rfft(ops.extract_sequences(x, FRAME, HOP))),
    "longer transform": lambda x: ops.norm(ops.stack(ops.rfft(ops.extract_sequences(x, 50, HOP), FRAME)), axis=0),
    "tensorflow": lambda x: tf.abs(tf.signal.stft(x, 60, HOP)) ** 2,
    "no window": lambda x: tf.abs(tf.signal.stft(x, FRAME, HOP, window_fn=None)),
    "parts": lambda x: tf.norm(
        tf.stack([tf.math.real(tf.signal.stft(x, FRAME, HOP)), tf.math.imag(tf.signal.stft(x, FRAME, HOP))], -1),
        axis=-1,
    ),
    "framed": lambda x: tf.abs(tf.complex(*ops.rfft(tf.signal.frame(x, FRAME, HOP)))),
}
LOGARITHMS: dict[str, Callable[[Any], Any]] = {
    "log": ops.log,
    "log10": ops.log10,
    "log2": ops.log2,
    "log1p": lambda x: ops.log1p(1e3 * x),
    "tensorflow": lambda x: tf.math.log(x) / np.log(10.0),
    "tensorflow log1p": lambda x: tf.math.log1p(1e3 * x),
}


class Function(L.Layer):
    """A layer of a function."""

    def __init__(self, function: Callable[[Any], Any], **settings: Any) -> None:
        super().__init__(**settings)
        self.function = function

    def call(self, x: Any) -> Any:
        return self.function(x)


def network(spectrum: Callable[[Any], Any], logarithm: Callable[[Any], Any]) -> keras.Model:
    x = keras.Input((SAMPLES,), name="x")
    bands = L.Dense(BANDS, use_bias=False)
    y = bands(Function(spectrum)(x))
    bands.set_weights(
        [np.maximum(1 - np.abs(np.arange(BINS)[:, None] - np.linspace(0, BINS - 1, BANDS)) / 3, 0).astype(np.float32)]
    )
    return keras.Model(x, Function(lambda y: logarithm(ops.maximum(y, 1e-6)))(y))


def tones(seed: int) -> NDArray[np.float32]:
    """Loud tones that become quiet, down to a thousandth."""
    rng, time = np.random.default_rng(seed), np.arange(SAMPLES)
    wave = np.sin(rng.uniform(0.1, 2.5, (16, 1)) * time) + 0.1 * rng.standard_normal((16, SAMPLES))
    return (wave * 10.0 ** (-3 * time / SAMPLES)).astype(np.float32)


def check(model: keras.Model, folder: Path) -> None:
    sim = isobit.quantize(model, tones(0), progress=False)
    new = tones(1)
    exact = model.predict(new, verbose=0)
    (plain,), (rounded,) = sim.run_float(new).values(), sim.run(new).values()
    np.testing.assert_allclose(plain, exact, rtol=1e-3, atol=1e-3)
    assert 10 * np.log10(np.var(exact) / np.mean((rounded - exact) ** 2)) > 35
    assert sim.export(folder).checks[0].equal > 0.99


@pytest.mark.parametrize("kind", SPECTRA)
def test_spectra(kind: str, tmp_path: Path) -> None:
    check(network(SPECTRA[kind], ops.log), tmp_path)


@pytest.mark.parametrize("kind", LOGARITHMS)
def test_logarithms(kind: str, tmp_path: Path) -> None:
    check(network(SPECTRA["keras"], LOGARITHMS[kind]), tmp_path)


def test_phases_of_a_spectrum() -> None:
    """Parts and angles by their sign, of windows that begin their frames."""
    x = keras.Input((SAMPLES,), name="x")

    def parts(x: Any) -> Any:
        spectrum = tf.signal.stft(x, 50, HOP)
        return tf.concat([tf.math.real(spectrum), tf.math.imag(spectrum), tf.cos(tf.math.angle(spectrum))], -1)

    opened = TensorFlowBackend().open(keras.Model(x, Function(parts)(x)))
    (found,) = opened.run({"x": tones(2)}).values()
    spectrum = tf.signal.stft(tones(2), 50, HOP).numpy()
    expected = np.concatenate([spectrum.real, spectrum.imag, np.cos(np.angle(spectrum))], -1)
    np.testing.assert_allclose(found, expected, atol=2e-3)


#: Functions whose float results must be those of Keras and TensorFlow, of samples whose signs vary.
ALIKE: dict[str, Callable[[Any], Any]] = {
    "an odd window": lambda x: ops.concatenate(ops.stft(x, 33, 16, 45), -1),
    "an odd window of Hamming": lambda x: ops.concatenate(ops.stft(x, 33, 16, 46, "hamming"), -1),
    "a window of its own": lambda x: ops.concatenate(ops.stft(x, 33, 16, 64, np.hanning(33).astype(np.float32)), -1),
    "whole frames without a window": lambda x: ops.concatenate(ops.stft(x, 50, 32, 64, None), -1),
    "a norm of all values": lambda x: x / tf.norm(x, 2),
    "a sum of all magnitudes": lambda x: x / tf.norm(x, 1),
    "an imaginary part of a number": lambda x: tf.math.imag(tf.complex(x, 2.0)) - x,
    "a real part of fewer values": lambda x: tf.math.real(tf.complex(x[:, :1], x)),
}


@pytest.mark.parametrize("kind", ALIKE)
def test_what_is_opened_is_what_was_given(kind: str) -> None:
    x = keras.Input((SAMPLES,), name="x")
    model = keras.Model(x, Function(ALIKE[kind])(x))
    (found,) = TensorFlowBackend().open(model).run({"x": tones(2)}).values()
    np.testing.assert_allclose(found, model.predict(tones(2), verbose=0, batch_size=64), atol=2e-3)


OF_WHOLE_NUMBERS: dict[str, Callable[[Any], Any]] = {
    **{name: getattr(ops, name) for name in ("floor", "log", "log1p", "norm", "sqrt")},
    "hypot": lambda n: ops.hypot(n, n + 1),
    "relu": lambda n: ops.cast(ops.relu(n), "float32"),
}


@pytest.mark.parametrize("kind", OF_WHOLE_NUMBERS)
def test_whole_numbers_become_floats_first(kind: str, tmp_path: Path) -> None:
    n = keras.Input((6,), dtype="int32", name="n")
    function = OF_WHOLE_NUMBERS[kind]
    model = keras.Model(n, L.Dense(4)(ops.ones((1, 6)) * Function(lambda n: function(ops.abs(n) + 1))(n)))
    numbers = np.random.default_rng(0).integers(-6, 7, (16, 6)).astype(np.int32)
    sim = isobit.quantize(model, numbers, progress=False)
    (found,) = sim.run_float(numbers).values()
    np.testing.assert_allclose(found, model(numbers), rtol=1e-5, atol=1e-4)
    assert sim.export(tmp_path).checks[0].equal > 0.99
