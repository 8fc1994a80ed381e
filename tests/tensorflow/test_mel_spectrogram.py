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
