"""Strided 1 x 1 convolutions of few channels, whose gradient in TensorFlow's oneDNN ends the process on AVX-512."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L

from isobit_tensorflow.backend import TensorFlowBackend


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize(("inputs", "outputs", "stride", "size"), [(8, 12, 2, 12), (3, 5, 2, 7), (12, 20, 3, 10)])
def test_gradients_by_their_weights(inputs: int, outputs: int, stride: int, size: int, padding: str) -> None:
    """Against sums over positions in float64; a fault of memory shows within some 10 runs."""
    random = np.random.default_rng(0)
    given = keras.Sequential([L.Input((size, size, inputs)), L.Conv2D(outputs, 1, stride, padding, name="shortcut")])
    model = TensorFlowBackend().open(given, None)
    (name,) = (name for name, info in model.graph.weights.items() if len(info.shape) == 4)
    (source,) = model.graph.inputs
    x = random.standard_normal((3, size, size, inputs)).astype(np.float32)
    picked = x[:, ::stride, ::stride].astype(np.float64)
    for _ in range(15):
        weight = random.standard_normal((outputs, inputs, 1, 1)).astype(np.float32)
        result = picked @ weight[..., 0, 0].T.astype(np.float64)
        value, gradients = model.gradient(
            lambda outputs: tf.reduce_sum(tf.square(next(iter(outputs.values())))), {name: weight}, {source: x}
        )
        assert value == pytest.approx(np.square(result).sum(), rel=1e-4)
        expected = 2 * np.einsum("nhwo,nhwi->oi", result, picked)
        np.testing.assert_allclose(gradients[name][..., 0, 0], expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_the_layer_is_that_of_keras() -> None:
    random = np.random.default_rng(1)
    for padding in ("valid", "same"):
        given = keras.Sequential([L.Input((9, 11, 6)), L.Conv2D(10, 1, 2, padding)])
        model = TensorFlowBackend().open(given, None)
        x = random.standard_normal((2, 9, 11, 6)).astype(np.float32)
        (made,) = model.run({model.graph.inputs[0]: x}).values()
        np.testing.assert_allclose(made, np.asarray(given(x)), atol=1e-5)
