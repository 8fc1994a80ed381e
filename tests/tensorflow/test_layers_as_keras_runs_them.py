"""Layers that have no rule and cannot be opened stay in float, whole, and the rest of the model is quantized."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import onnxruntime
import pytest
import tensorflow as tf
from keras import layers as L
from keras import ops

import isobit
from isobit.errors import ModelError
from isobit_tensorflow.backend import TensorFlowBackend

ROWS = np.random.default_rng(0).standard_normal((8, 6, 4)).astype(np.float32)


class LoopOfTensorFlow(L.Layer):
    """Calls a function of TensorFlow that is not read, as it runs functions of its own."""

    def build(self, shape) -> None:
        self.kernel = self.add_weight(shape=(4, 5), name="kernel")

    def call(self, x):
        return tf.map_fn(lambda row: tf.nn.relu(row @ self.kernel), x)


class Conditional(L.Layer):
    """Two ways, by the values; without a configuration that makes it again."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function, self.inner = function, L.Dense(5)

    def build(self, shape) -> None:
        self.inner.build(shape)

    def call(self, x):
        return ops.cond(ops.mean(x) > 0, lambda: self.inner(x), lambda: self.inner(self.function(x)))


class Loop(L.Layer):
    def __init__(self, start) -> None:
        super().__init__(name="loop")
        self.start = start

    def build(self, shape) -> None:
        self.kernel = self.add_weight(shape=(4, 4), name="kernel")

    def call(self, x):
        return ops.while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, ops.tanh(y @ self.kernel)), (self.start, x))[1]


KEPT = {
    "TensorFlow": lambda: LoopOfTensorFlow(),
    "condition": lambda: Conditional(lambda x: -x),
    "loop": lambda: Loop(0),
    "loop over a tensor": lambda: Loop(np.int32(0)),
}


@pytest.mark.parametrize("kind", KEPT)
def test_one_layer_stays_in_float(kind: str, tmp_path: Path) -> None:
    x = keras.Input((6, 4), name="x")
    layer = KEPT[kind]()
    y = L.Flatten()(layer(L.Dense(4, activation="relu")(x)))
    model = keras.Model(x, L.Dense(3, name="scores")(y))
    with pytest.warns(UserWarning, match=r"keras::\w+ runs whole"):
        sim = isobit.quantize(model, ROWS, progress=False)  # compares with the model
    assert len(sim.report.coverage.uncounted) == 1
    assert len([node for node in sim.graph.nodes if node.op.startswith("keras::")]) == 1
    assert any("runs as Keras runs it and stays in float: " in note for note in sim.graph.notes)
    assert 0 < sim.report.coverage.weights < 1
    assert {placement.site.name.split("/")[0] for placement in sim.plan.of_kind("weight")} in (
        {"dense", "scores"}, {"dense_1", "scores"},
    )  # fmt: skip
    assert len(sim.model.trainable_variables) == len(model.trainable_variables)
    before = [variable.numpy().copy() for variable in sim.model.trainable_variables]
    sim.model.compile("sgd", "mse")
    sim.model.fit(ROWS, np.ones((8, 3), np.float32), verbose=0)
    moved = [not np.array_equal(a, b.numpy()) for a, b in zip(before, sim.model.trainable_variables, strict=True)]
    assert all(moved)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(str(sim.export(tmp_path / "out")["model"]), options)
    expected = sim.run(ROWS)["scores"]
    assert np.abs(session.run(None, {"x": ROWS})[0] - expected).max() <= 0.02 * np.abs(expected).max()
    sim.save(tmp_path / "sim.isobit")


def test_a_simulator_with_such_a_layer_loads_in_another_process(tmp_path: Path) -> None:
    x = keras.Input((None, 4), name="x")  # of known lengths its steps are read
    model = keras.Model(x, L.Dense(3)(L.LSTM(5, recurrent_activation="hard_sigmoid")(x)))
    with pytest.warns(UserWarning, match="keras::LSTM runs whole"):
        sim = isobit.quantize(model, ROWS, progress=False)
    sim.model.save(tmp_path / "model.keras")
    np.save(tmp_path / "rows.npy", ROWS)
    program = (
        "import sys, numpy as np, isobit_tensorflow.model, keras\n"
        "model = keras.saving.load_model(sys.argv[1] + '/model.keras')\n"
        "np.save(sys.argv[1] + '/found.npy', model(np.load(sys.argv[1] + '/rows.npy')))\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, capture_output=True)
    np.testing.assert_array_equal(np.load(tmp_path / "found.npy"), sim.model(ROWS))


def test_what_cannot_be_traced_is_refused() -> None:
    class Branching(L.Layer):
        def call(self, x):
            return x if float(ops.sum(x)) > 0 else -x

        def compute_output_shape(self, shape):
            return shape

    x = keras.Input((6, 4))
    with pytest.raises(ModelError, match="branching.*without branches on values"):
        TensorFlowBackend().open(keras.Model(x, Branching(name="branching")(x)))
