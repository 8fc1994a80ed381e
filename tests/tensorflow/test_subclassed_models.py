"""Subclassed models: opened with an example batch, as `fit` takes one, and computed as Keras computes them."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L

import isobit
from isobit_tensorflow.backend import TensorFlowBackend

ROWS = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)


class Classifier(keras.Model):
    """Two layers and dropout, which trains or not."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.drop, self.head = L.Dense(16, activation="relu"), L.Dropout(0.3), L.Dense(4, name="head")

    def call(self, x, training=False):
        return self.head(self.drop(self.hidden(x), training=training))


class Named(keras.Model):
    """Takes and returns dicts."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = L.Dense(4), L.Dense(4)

    def call(self, inputs):
        return {"sum": self.left(inputs["a"]) + self.right(inputs["b"]), "left": self.left(inputs["a"])}


class Listed(keras.Model):
    """Takes a list and returns a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = L.Dense(4), L.Dense(4)

    def call(self, inputs):
        return self.left(inputs[0]) * self.right(inputs[1]), self.left(inputs[0])


class Words(keras.Model):
    """Padded words, whose mask a recurrent layer reads."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.steps, self.head = L.Embedding(20, 8, mask_zero=True), L.LSTM(8), L.Dense(3)

    def call(self, words, training=None, mask=None):
        return self.head(self.steps(self.table(words), training=training))


class Doubled(keras.Model):
    """A functional model with a call of its own, which says what it takes."""

    def call(self, x, training=None):
        return super().call(x * 2.0, training=training)


def _doubled() -> keras.Model:
    x = keras.Input((8,))
    return Doubled(x, L.Dense(4)(L.Dense(8, activation="relu")(x)))


WORDS = np.random.default_rng(1).integers(0, 20, (16, 6)).astype(np.int32)
MODELS = {
    "rows": (Classifier, ROWS),
    "dict": (Named, {"a": ROWS, "b": ROWS[::-1].copy()}),
    "list": (Listed, [ROWS, ROWS[::-1].copy()]),
    "masked words": (Words, WORDS),
    "own call of a functional one": (_doubled, ROWS),
}


@pytest.mark.parametrize("kind", MODELS)
def test_computes_what_keras_computes(kind: str) -> None:
    make, batch = MODELS[kind]
    model = make()
    expected = keras.tree.flatten(model(batch, training=False))
    nodes = [len(layer._inbound_nodes) for layer in model._flatten_layers()]
    opened = TensorFlowBackend().open(model, None if kind.startswith("own") else batch)
    assert [len(layer._inbound_nodes) for layer in model._flatten_layers()] == nodes
    names = opened.graph.inputs
    arrays = batch if isinstance(batch, list) else [batch]
    feeds = batch if isinstance(batch, dict) else dict(zip(names, arrays, strict=True))
    results = opened.run(feeds)
    assert set(opened.run_given(feeds)) == set(results)
    order = [str(name) for name in keras.tree.flatten(opened.native.output_structure)]
    for name, value in zip(order, expected, strict=True):
        np.testing.assert_allclose(results[name], value, rtol=1e-4, atol=1e-5)
    assert all(info.shape[0] == "batch" for info in (opened.graph.tensors[name] for name in names))


def test_the_whole_way_with_labels(tmp_path: Path) -> None:
    model = Classifier()
    model.compile("sgd", "mse")
    model.fit(ROWS, np.zeros((16, 4)), verbose=0)
    data = tf.data.Dataset.from_tensor_slices((ROWS, np.zeros(16))).batch(4)
    sim = isobit.quantize(model, data, recipe="basic", method="minmax", progress=False)
    assert str(sim.report.coverage).startswith("100.0 %")
    sim.export(tmp_path / "out")
    sim.save(tmp_path / "model.sim")
    loaded = isobit.load(tmp_path / "model.sim", model)
    np.testing.assert_array_equal(loaded.run(ROWS)["classifier"], sim.run(ROWS)["classifier"])


class Branch(keras.Model):
    """Branches on values in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.head = L.Dense(4)

    def call(self, x):
        return self.head(x) if keras.ops.sum(x) > 0 else -self.head(x)


@pytest.mark.parametrize(
    ("make", "called", "example", "said"),
    [
        (Classifier, False, ROWS, "never called"),
        (Classifier, True, None, "pass example_inputs"),
        (Classifier, True, np.zeros((2, 5), np.float32), r"\(None, 5\)"),
        (Branch, True, ROWS, "without branches on values"),
        (Classifier, True, np.float32(1), "one number"),
        (Classifier, True, {"rows": ROWS, "hint": None}, "input 'hint' of the example is None"),
    ],
)
def test_says_what_is_missing(make, called: bool, example, said: str) -> None:
    model = make()
    if called:
        model(ROWS)
    with pytest.raises(isobit.errors.ModelError, match=said):
        TensorFlowBackend().open(model, example)
