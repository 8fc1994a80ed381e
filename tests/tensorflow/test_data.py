"""Data as `fit` takes it: tf.data and PyDataset with labels and sample weights, tuples and dicts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L

import isobit
from isobit.errors import DataError

RNG = np.random.default_rng(0)
ROWS = RNG.standard_normal((32, 5)).astype(np.float32)
OTHERS = RNG.uniform(3, 4, (32, 5)).astype(np.float32)
LABELS, SHARES = RNG.integers(0, 3, 32), np.ones(32, np.float32)


class Batches(keras.utils.PyDataset):
    """As the documentation of Keras shows it, of the newer kind without a length."""

    def __init__(self, pick: Callable[[slice], Any], count: int | None = 4) -> None:
        super().__init__()
        self._pick, self._count = pick, count

    @property
    def num_batches(self):
        return self._count

    def __getitem__(self, index):
        return self._pick(slice(8 * index, 8 * index + 8))


class Counted(Batches):
    """Of the older kind."""

    def __len__(self):
        return 4


def one_input() -> keras.Model:
    x = keras.Input((5,), name="x")
    return keras.Model(x, L.Dense(3)(x))


def two_inputs(in_a_dict: bool) -> keras.Model:
    a, b = keras.Input((5,), name="a"), keras.Input((5,), name="b")
    y = L.Dense(3)(L.Concatenate()([L.Dense(4)(b), L.Dense(4)(a)]))
    return keras.Model({"a": a, "b": b} if in_a_dict else [a, b], y)


slices = tf.data.Dataset.from_tensor_slices
ONE = {
    "images": lambda: slices(ROWS).batch(8),
    "labels": lambda: slices((ROWS, LABELS)).batch(8).prefetch(1),
    "weights": lambda: slices((ROWS, LABELS, SHARES)).batch(8),
    "targets like inputs": lambda: slices((ROWS, OTHERS)).batch(8),
    "float64": lambda: slices((ROWS.astype(np.float64), LABELS)).batch(8),
    "py labels": lambda: Batches(lambda s: (ROWS[s], LABELS[s])),
    "py weights": lambda: Counted(lambda s: (ROWS[s], LABELS[s], SHARES[s])),
}
DICTS = {
    "dict": lambda: slices({"b": OTHERS, "a": ROWS}).batch(8),
    "dict and labels": lambda: slices(({"b": OTHERS, "a": ROWS}, LABELS)).batch(8),
    "dicts and weights": lambda: slices(({"b": OTHERS, "a": ROWS}, {"head": LABELS}, SHARES)).batch(8),
    "more features": lambda: slices(({"b": OTHERS, "a": ROWS, "id": LABELS}, LABELS)).batch(8),
    "py dict": lambda: Batches(lambda s: ({"b": OTHERS[s], "a": ROWS[s]}, LABELS[s])),
}
LISTS = {
    "tuple and labels": lambda: slices(((ROWS, OTHERS), LABELS)).batch(8),
    "tuple, labels, weights": lambda: slices(((ROWS, OTHERS), LABELS, SHARES)).batch(8),
    "dict by name": lambda: slices(({"b": OTHERS, "a": ROWS}, LABELS)).batch(8),
    "py list": lambda: Counted(lambda s: ([ROWS[s], OTHERS[s]], LABELS[s])),
}


def ranges(model: keras.Model, data: Any) -> dict[str, tuple[float, float]]:
    sim = isobit.QuantSim(model)
    sim.calibrate(data, progress=False)
    encodings = {str(site): encoding for site, encoding in sim.encodings.items()}
    return {name: encodings[name].scale.item() for name in sim.graph.inputs}


@pytest.mark.parametrize("kind", ONE)
def test_one_input(kind: str) -> None:
    assert ranges(one_input(), ONE[kind]()) == ranges(one_input(), ROWS)


@pytest.mark.parametrize("kind", [*DICTS, *LISTS])
def test_two_inputs(kind: str) -> None:
    data = (DICTS | LISTS)[kind]()
    assert ranges(two_inputs(kind in DICTS), data) == ranges(two_inputs(True), {"a": ROWS, "b": OTHERS})


@pytest.mark.parametrize(
    "data",
    [
        lambda: slices((ROWS, LABELS)).batch(8).repeat(),
        lambda: Batches(lambda s: (ROWS[:8], LABELS[:8]), None),
        lambda: slices(ROWS).repeat().batch(8),
    ],
)
def test_data_without_an_end_says_so(data: Callable[[], Any]) -> None:
    with pytest.raises(DataError, match="no end.*take"):
        isobit.quantize(one_input(), data(), progress=False)


def test_ragged_rows_say_how_they_are_padded():
    x = keras.Input((None,), dtype="int32")
    model = keras.Model(x, L.Dense(3)(L.GlobalAveragePooling1D()(L.Embedding(9, 4)(x))))
    rows = tf.ragged.constant([[1, 2, 3], [4, 5]])
    with pytest.raises(DataError, match=r"pad them to one length, as RaggedTensor\.to_tensor\(\) does"):
        isobit.quantize(model, rows, progress=False)
    assert isobit.quantize(model, rows.to_tensor(), method="minmax", progress=False).report.coverage
