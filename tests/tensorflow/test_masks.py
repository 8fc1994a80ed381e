"""Masks that layers make: left out where nobody reads them, and read where a layer does."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops

from isobit_tensorflow.backend import TensorFlowBackend

pytestmark = pytest.mark.filterwarnings("ignore:Layer .* was passed an input with a mask attached")  # Keras' own

STEPS = np.random.default_rng(0).standard_normal((4, 5, 6)).astype(np.float32)
STEPS[0, 2:], STEPS[1, 4], STEPS[2, 1] = 0.0, 0.0, 2.0
WORDS = np.array([[1, 2, 0, 0, 0], [3, 4, 5, 6, 0], [1, 1, 1, 1, 1], [0, 7, 8, 0, 0]], np.int32)


class Summary(L.Layer):
    """A layer of the user's with one inside that reads the mask."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = L.GRU(3)
        self.supports_masking = True

    def build(self, shape) -> None:
        self.inner.build(shape)

    def call(self, x):
        return self.inner(x)


UNREAD = {
    "flatten": lambda y: L.Dense(3)(L.Flatten()(y)),
    "convolution": lambda y: L.Conv1D(3, 2)(y),
    "convolution and mean": lambda y: L.GlobalAveragePooling1D()(L.Conv1D(3, 2)(y)),
    "maximum": lambda y: L.GlobalMaxPooling1D()(y),
    "operations": lambda y: ops.mean(y * 2.0, axis=1),
    "norms": lambda y: L.Dense(2)(L.LayerNormalization()(L.BatchNormalization()(L.Dropout(0.1)(y)))),
    "steps": lambda y: L.TimeDistributed(L.Dense(2))(y),
    "nested": lambda y: keras.Sequential([L.Dense(3), L.ReLU()])(y),
    "nothing": lambda y: y,
}
READ = {
    "mean": lambda y: L.GlobalAveragePooling1D()(y),
    "mean behind layers": lambda y: L.Dense(2)(L.GlobalAveragePooling1D()(L.Dense(4, activation="relu")(y))),
    "LSTM": lambda y: L.LSTM(3)(y),
    "GRU": lambda y: L.GRU(3)(L.Dense(4)(y)),
    "Bidirectional": lambda y: L.Bidirectional(L.LSTM(3))(y),
    "Attention": lambda y: L.Attention()([y, y]),
    "MultiHeadAttention": lambda y: L.MultiHeadAttention(2, 3)(y, y),
    "own layer": lambda y: Summary()(y),
}


def models(build) -> list[tuple[keras.Model, np.ndarray]]:
    steps, words = keras.Input((5, 6)), keras.Input((5,), dtype="int32")
    return [
        (keras.Model(steps, build(L.Masking()(steps))), STEPS),
        (keras.Model(steps, build(L.Masking(2.0)(steps))), STEPS),
        (keras.Model(words, build(L.Embedding(9, 6, mask_zero=True)(words))), WORDS),
    ]


@pytest.mark.parametrize("kind", [*UNREAD, *READ])
def test_a_mask_that_is_not_read_or_read_by_operations(kind: str) -> None:
    for model, data in models((UNREAD | READ)[kind]):
        backend_model = TensorFlowBackend().open(model)
        (output,) = backend_model.run({backend_model.graph.inputs[0]: data}).values()
        np.testing.assert_allclose(output, model.predict(data, verbose=0), rtol=1e-4, atol=1e-5)
