"""MelSpectrogram in the model: what Keras computes, and a file that holds it."""

from __future__ import annotations

import keras
import numpy as np
import onnxruntime
import pytest
from keras import layers as L

from isobit_tensorflow.backend import TensorFlowBackend

SOUND = np.random.default_rng(0).standard_normal((3, 400)).astype(np.float32)
COMMON = {"sampling_rate": 8000, "sequence_stride": 32, "fft_length": 64, "num_mel_bins": 10}
SETTINGS = {
    "as it is": {"sequence_length": 64},
    "short window": {"sequence_length": 50, "window": "hamming"},
    "power without decibels": {"sequence_length": 64, "mag_exp": 2.0, "power_to_db": False, "min_freq": 100.0},
    "own window": {"sequence_length": 64, "window": np.linspace(0.1, 1, 64).astype(np.float32), "top_db": 10},
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_is_what_keras_computes(kind: str) -> None:
    x = keras.Input((400,), name="x")
    model = keras.Model(x, L.MelSpectrogram(**COMMON, **SETTINGS[kind])(x))
    opened = TensorFlowBackend().open(model)
    assert "Conv" in {node.op for node in opened.graph.nodes}
    (output,) = opened.run({"x": SOUND}).values()
    np.testing.assert_allclose(output, model(SOUND), rtol=1e-3, atol=1e-2)
    proto, _ = opened.to_onnx()
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x": SOUND})[0], output, rtol=1e-3, atol=1e-2)


def _same(outputs: keras.KerasTensor, x: keras.KerasTensor, data: np.ndarray, op: str) -> None:
    """The model opens into `op`, gives what Keras gives, and its file too."""
    model = keras.Model(x, outputs)
    opened = TensorFlowBackend().open(model)
    assert op in {node.op for node in opened.graph.nodes}
    expected = [np.asarray(part) for part in keras.tree.flatten(model(data))]
    proto, _ = opened.to_onnx()
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    given = session.run(None, {session.get_inputs()[0].name: data})
    for results in (list(opened.run({"x": data}).values()), given):
        for part, result in zip(expected, results, strict=True):
            np.testing.assert_allclose(result, part, atol=2e-4)


@pytest.mark.parametrize(
    ("count", "stride", "length", "settings"),
    [(64, 32, 64, {}), (50, 30, 64, {"window": "hamming"}), (32, 16, 32, {"window": None, "center": False})],
)
def test_frames_of_a_fourier_transform(count: int, stride: int, length: int, settings: dict[str, object]) -> None:
    """keras.ops.stft in a functional model: tf2onnx knows no transform."""
    x = keras.Input((400,), name="x")
    real, imaginary = keras.ops.stft(x, count, stride, length, **settings)
    _same([real, keras.ops.abs(imaginary)], x, SOUND, "Conv")


@pytest.mark.parametrize("length", [None, 32, 500])
def test_a_fourier_transform_of_an_axis(length: int | None) -> None:
    x = keras.Input((5, 80), name="x")
    real, imaginary = keras.ops.rfft(x, length)
    _same([real, imaginary], x, SOUND.reshape(3, 5, 80), "Linear")
