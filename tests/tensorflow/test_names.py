"""Names depend on the model alone: not on what was built, opened or loaded before in the process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops

import isobit
from isobit_tensorflow.backend import TensorFlowBackend

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras saves so


def names(model: object) -> tuple[set[str], ...]:
    graph = TensorFlowBackend().open(model).graph
    return {node.name for node in graph.nodes}, set(graph.tensors), set(graph.weights), set(graph.outputs)


class Gate(L.Layer):
    """Its variables have no names, and its call makes operations."""

    def build(self, shape) -> None:
        self.gate = self.add_weight(shape=(shape[-1],), initializer="ones")
        self.shift = self.add_weight(shape=(shape[-1],), initializer="zeros")

    def call(self, x):
        return x * ops.sigmoid(x * self.gate + self.shift) + x


class Block(L.Layer):
    """Layers inside a layer, without names."""

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self.parts = [L.Dense(8, activation="relu"), L.Dense(6)]
        self.norm = L.LayerNormalization()

    def call(self, x):
        y = x
        for part in self.parts:
            y = part(y)
        return self.norm(y + x)


def attention() -> keras.Model:
    x = keras.Input((5, 6))
    y = L.MultiHeadAttention(2, 4)(x, x) + x
    return keras.Model(x, L.Dense(3)(L.MultiHeadAttention(2, 4)(y, y)))


def dot_attention() -> keras.Model:
    a, b = keras.Input((5, 6)), keras.Input((5, 6))
    return keras.Model([a, b], L.Dense(3)(L.Attention()([L.Dense(6)(a), L.AdditiveAttention()([b, a])])))


def recurrent() -> keras.Model:
    x = keras.Input((5, 6))
    y = L.Bidirectional(L.LSTM(3, return_sequences=True))(x)
    return keras.Model(x, L.TimeDistributed(L.Dense(3))(L.Bidirectional(L.GRU(3, return_sequences=True))(y)))


def nested() -> keras.Model:
    x = keras.Input((5, 6))
    inner = keras.Sequential([L.Dense(6), keras.Sequential([L.Dense(6), L.Dense(6)])])
    return keras.Model(x, ops.relu(inner(x) * 2.0) + inner(x))


def sequential() -> keras.Model:
    model = keras.Sequential(
        [L.Conv1D(4, 3), L.BatchNormalization(), L.ReLU(), L.Conv1D(4, 3), L.Flatten(), L.Dense(2)]
    )
    model.build((None, 5, 6))
    return model


def own_layers() -> keras.Model:
    x = keras.Input((5, 6))
    return keras.Model(x, Block()(Gate()(Block()(x))))


def preprocessing() -> keras.Model:
    x = keras.Input((8, 8, 3))
    return keras.Model(x, L.Conv2D(4, 3)(L.Rescaling(1 / 255)(L.Resizing(6, 6)(L.RandomFlip()(x)))))


KINDS = [attention, dot_attention, recurrent, nested, sequential, own_layers, preprocessing]


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_the_same_network_has_the_same_names(make: Callable[[], keras.Model], tmp_path) -> None:
    model = make()
    first = names(model)
    assert names(model) == first  # opened again
    for _ in range(3):
        L.Dense(2), L.Conv1D(2, 2), keras.Input((1,)) + 1.0
    L.Dense(2, name="dense_7")
    assert names(make()) == first  # built again
    if make is not own_layers:
        assert names(keras.models.clone_model(model)) == first
        model.save(tmp_path / "model.keras")
        assert names(tmp_path / "model.keras") == first
    keras.utils.clear_session()
    assert names(make()) == first  # as in a process that has built nothing


def test_names_that_a_person_gave_stay() -> None:
    L.Dense(2)
    x = keras.Input((4,), name="image")
    y = L.Dense(3, name="head_2")(L.Dense(4, name="stem")(x))
    nodes, tensors, weights, outputs = names(keras.Model({"image": x}, {"logits_1": y}))
    assert nodes == {"stem", "head_2"}
    assert "image" in tensors
    assert weights == {"stem/kernel", "stem/bias", "head_2/kernel", "head_2/bias"}
    assert outputs == {"logits_1"}


def test_a_note_says_which_names_are_others() -> None:
    L.Dense(2)
    x = keras.Input((4,), name="x")
    layer = L.Dense(3)
    graph = TensorFlowBackend().open(keras.Model(x, layer(x))).graph
    assert graph.notes == (f"names that Keras numbered begin at 0 here: {layer.name} is dense",)


def test_two_layers_of_one_class_keep_their_order() -> None:
    """Numbers of two digits come behind those of one."""
    made = [L.Dense(n, name=f"dense_{n}") for n in (9, 10, 11)]
    x = y = keras.Input((4,), name="x")
    for layer in made:
        y = layer(y)
    graph = TensorFlowBackend().open(keras.Model(x, y)).graph
    assert [graph.weights[f"{name}/kernel"].shape[0] for name in ("dense", "dense_1", "dense_2")] == [9, 10, 11]


@pytest.mark.parametrize("make", [attention, nested, own_layers], ids=lambda make: make.__name__)
def test_what_was_saved_loads_onto_the_model_built_again(make: Callable[[], keras.Model], tmp_path) -> None:
    rng = np.random.default_rng(0)
    model = make()
    data = rng.standard_normal((8, *model.inputs[0].shape[1:])).astype(np.float32)
    sim = isobit.quantize(model, data, recipe="basic", progress=False)  # encodings alone carry no corrections
    sim.save(tmp_path / "sim.isobit")
    sim.export(tmp_path / "out")
    again = make()
    again.set_weights(model.get_weights())
    expected = next(iter(sim.run(data).values()))
    for loaded in (isobit.load(tmp_path / "sim.isobit", model), isobit.load(tmp_path / "sim.isobit", again)):
        np.testing.assert_array_equal(next(iter(loaded.run(data).values())), expected)
    fresh = isobit.QuantSim(again, target="onnxruntime-cpu")
    fresh.load_encodings(tmp_path / "out" / "encodings.json")
    np.testing.assert_array_equal(next(iter(fresh.run(data).values())), expected)


_PROGRAM = """
import sys
import numpy as np
import keras
import isobit

folder = sys.argv[1]
[keras.layers.Dense(2) for _ in range(5)]
data = np.load(folder + "/data.npy")
model = keras.saving.load_model(folder + "/model.keras")
sim = isobit.load(folder + "/sim.isobit", model)
np.testing.assert_array_equal(next(iter(sim.run(data).values())), np.load(folder + "/expected.npy"))
other = isobit.QuantSim(folder + "/model.keras", target="onnxruntime-cpu")
other.load_encodings(folder + "/out/encodings.json")
np.testing.assert_array_equal(next(iter(other.run(data).values())), np.load(folder + "/expected.npy"))
"""


def test_what_was_saved_loads_in_another_process(tmp_path) -> None:
    model = attention()
    data = np.random.default_rng(0).standard_normal((8, 5, 6)).astype(np.float32)
    sim = isobit.quantize(model, data, recipe="basic", progress=False)
    sim.save(tmp_path / "sim.isobit")
    sim.export(tmp_path / "out")
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "data.npy", data)
    np.save(tmp_path / "expected.npy", next(iter(sim.run(data).values())))
    done = subprocess.run([sys.executable, "-c", _PROGRAM, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_inputs_by_other_names_are_no_guess() -> None:
    sim = isobit.QuantSim(dot_attention())
    arrays = [np.ones((2, 5, 6), np.float32)] * 2
    with pytest.raises(isobit.errors.DataError, match="input_layer, input_layer_1"):
        sim.model(dict(zip(("left", "right"), arrays, strict=True)))
