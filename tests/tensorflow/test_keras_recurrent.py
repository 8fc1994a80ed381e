"""Recurrent layers as people write them: around cells, with states, of any length, with masks. Keras is the judge."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnxruntime
import pytest
from keras import layers as L

import isobit
from isobit_tensorflow.backend import TensorFlowBackend

RNG = np.random.default_rng(0)
STEPS = RNG.standard_normal((8, 7, 5)).astype(np.float32)
WORDS = RNG.integers(1, 9, (8, 7)).astype(np.int32)
for row, count in enumerate((7, 1, 0, 3, 4, 2, 5, 6)):  # words of one row lie in front, of the next behind
    WORDS[row] = np.where((np.arange(7) < count) if row % 2 else (np.arange(7) >= 7 - count), WORDS[row], 0)
WORDS[6, 3] = 0

Build = Callable[[Any], Any]


def compare(model: keras.Model, data: Any, *ops: str) -> Any:
    """The opened model is the user's; returns it."""
    opened = TensorFlowBackend().open(model)
    arrays = data if isinstance(data, list) else [data]
    found = list(opened.run(dict(zip(opened.graph.inputs, arrays, strict=True))).values())
    expected = keras.tree.flatten(model.predict(data, verbose=0))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    present = [node.op for node in opened.graph.nodes]
    assert not [op for op in present if op.startswith("keras::")]
    for op in ops:
        assert op in present
    return opened


def float_mode() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return options


def both_states(x: Any) -> Any:
    sequence, *states = L.LSTM(4, return_sequences=True, return_state=True)(x)
    return [L.Dense(2)(sequence), *states]


def from_states(x: Any) -> Any:
    """A decoder that begins where the encoder ended."""
    _, *states = L.LSTM(4, return_state=True)(x)
    return L.LSTM(4, return_sequences=True)(x, initial_state=states)


def from_one_state(x: Any) -> Any:
    _, state = L.GRU(4, return_state=True)(x)
    return L.GRU(4, go_backwards=True)(x, initial_state=state)


def both_ways_with_states(x: Any) -> Any:
    results = L.Bidirectional(L.LSTM(3, return_state=True))(x)
    return L.Bidirectional(L.LSTM(3))(x, initial_state=results[1:])


LAYERS: dict[str, tuple[Build, str]] = {
    "simple": (L.SimpleRNN(4), "RNN"),
    "simple, relu": (L.SimpleRNN(4, activation="relu", return_sequences=True, go_backwards=True), "RNN"),
    "simple, both ways": (L.Bidirectional(L.SimpleRNN(4), merge_mode="ave"), "RNN"),
    "around a cell": (L.RNN(L.LSTMCell(4), return_sequences=True), "LSTM"),
    "around cells": (L.RNN([L.GRUCell(4), L.SimpleRNNCell(3)]), "GRU"),
    "both ways around a cell": (L.Bidirectional(L.RNN(L.GRUCell(4, reset_after=False))), "GRU"),
    "other activations": (L.LSTM(4, activation="relu", recurrent_activation="softplus"), "LSTM"),
    "stateful": (L.GRU(4, stateful=True), "GRU"),
    "states": (both_states, "LSTM"),
    "from states": (from_states, "LSTM"),
    "from one state": (from_one_state, "GRU"),
    "both ways, states": (both_ways_with_states, "LSTM"),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_is_a_node(kind: str) -> None:
    build, op = LAYERS[kind]
    x = keras.Input(batch_shape=(8, 7, 5)) if kind == "stateful" else keras.Input((7, 5))
    model = keras.Model(x, build(x))
    opened = compare(model, STEPS, op)
    assert any("begins at 0 in each batch" in note for note in opened.graph.notes) == (kind == "stateful")


@pytest.mark.parametrize("build", [L.LSTM(4), L.Bidirectional(L.GRU(3, return_sequences=True)), both_states])
def test_sequences_of_any_length(build: Build, tmp_path: Path) -> None:
    x = keras.Input((None, 5), name="x")
    model = keras.Model(x, build(x))
    compare(model, STEPS)
    sim = isobit.quantize(model, STEPS, progress=False)
    short = STEPS[:3, :4]
    session = onnxruntime.InferenceSession(str(sim.export(tmp_path)["model"]), float_mode())
    found = session.run(None, {"x": short})
    for a, b in zip(found, sim.run(short).values(), strict=True):
        np.testing.assert_allclose(a, b, atol=0.05)


MASKED: dict[str, Build] = {
    "last": L.LSTM(4),
    "sequence": L.GRU(4, return_sequences=True),
    "zeros": L.SimpleRNN(4, return_sequences=True, zero_output_for_mask=True),
    "zeros at last": L.LSTM(4, zero_output_for_mask=True),
    "backwards": L.GRU(4, go_backwards=True, return_sequences=True),
    "both ways": L.Bidirectional(L.LSTM(4)),
    "both ways, sequences": L.Bidirectional(L.GRU(4, return_sequences=True), merge_mode="sum"),
    "two layers": lambda y: L.GRU(3)(L.LSTM(4, return_sequences=True)(y)),
    "cells": L.RNN([L.LSTMCell(4), L.GRUCell(3)], return_sequences=True),
    "state": lambda y: L.GRU(4, return_state=True)(y),
    "model": lambda y: keras.Sequential([L.LSTM(3, return_sequences=True), L.GRU(2)])(y),
}


@pytest.mark.filterwarnings("ignore:Layer .* was passed an input with a mask attached")  # Keras' own
@pytest.mark.parametrize(("kind", "length"), [*((kind, 7) for kind in MASKED), ("last", None), ("backwards", None)])
def test_masked_steps_are_passed_over(kind: str, length: int | None) -> None:
    words = keras.Input((length,), dtype="int32")
    build = MASKED[kind]
    layer = type(build).from_config(build.get_config()) if isinstance(build, L.Layer) else build  # with its own weights
    compare(keras.Model(words, layer(L.Embedding(9, 5, mask_zero=True)(words))), WORDS)


def test_masks_of_steps_in_a_file(tmp_path: Path) -> None:
    words = keras.Input((7,), dtype="int32", name="words")
    y = L.Bidirectional(L.LSTM(6))(L.Embedding(9, 5, mask_zero=True)(words))
    model = keras.Model(words, L.Dense(3, name="scores")(y))
    sim = isobit.quantize(model, WORDS, progress=False)
    assert sim.report.coverage.compute == 1.0
    session = onnxruntime.InferenceSession(str(sim.export(tmp_path)["model"]), float_mode())
    np.testing.assert_allclose(session.run(None, {"words": WORDS})[0], sim.run(WORDS)["scores"], atol=0.03)


class _Cell(keras.layers.Layer):
    """A cell of one's own: two layers, of which the second reads the state."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.state_size, self.inner = units, (keras.layers.Dense(units), keras.layers.Dense(units, use_bias=False))

    def build(self, shape: Any) -> None:
        self.inner[0].build(shape)
        self.inner[1].build((shape[0], self.state_size))

    def call(self, x: Any, states: Any) -> Any:
        state = keras.ops.tanh(self.inner[0](x) + self.inner[1](states[0]))
        return state, [state]


def _of_own_cell(x: Any) -> Any:
    first, state = keras.layers.RNN(_Cell(4), return_sequences=True, return_state=True)(x)
    return keras.layers.RNN(_Cell(4), go_backwards=True, return_sequences=True)(first, initial_state=state)


UNROLLED = {
    "own cell": ((3, 5), _of_own_cell),
    "hard sigmoid": ((3, 5), keras.layers.LSTM(4, recurrent_activation="hard_sigmoid")),
    "backwards": ((3, 5), keras.layers.RNN([keras.layers.LSTMCell(4), keras.layers.GRUCell(3)], go_backwards=True)),
    "both ways": ((3, 6, 2), keras.layers.Bidirectional(keras.layers.ConvLSTM1D(2, 3, return_sequences=True))),
    "images": ((2, 5, 5, 2), keras.layers.ConvLSTM2D(2, 3, padding="same")),
}


@pytest.mark.parametrize("kind", UNROLLED)
def test_cells_without_a_node_are_read_for_each_step(kind: str) -> None:
    """Every step reads the same constants; the products and convolutions of the cell are weights of the graph."""
    shape, layer = UNROLLED[kind]
    x = keras.Input(shape, name="x")
    model = keras.Model(x, keras.layers.Activation("linear", name="y")(layer(x)))
    opened = TensorFlowBackend().open(model)
    batch = np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)
    np.testing.assert_allclose(opened.run({"x": batch})["y"], model(batch), atol=1e-5)
    assert not [node for node in opened.graph.nodes if node.op.startswith("keras::")]
    held = [v for v in opened.native.parameters.values() if v.trainable]
    assert sum(int(np.prod(v.shape)) for v in held) == model.count_params()


def test_steps_of_an_open_number_stay_whole() -> None:
    x = keras.Input((None, 5))
    model = keras.Model(x, keras.layers.LSTM(4, recurrent_activation="hard_sigmoid")(x))
    (node,) = [n for n in TensorFlowBackend().open(model).graph.nodes if n.op == "keras::LSTM"]
    assert node.name == "lstm"
