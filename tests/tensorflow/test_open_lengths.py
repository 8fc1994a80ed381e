"""Layers that count to a length the model leaves open: positions, the first rows of a table, causal masks."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import onnxruntime
import pytest
import tensorflow as tf
from keras import layers as L
from keras import ops

import isobit
from isobit_tensorflow.backend import TensorFlowBackend

RNG = np.random.default_rng(0)
WAVES = tf.constant(RNG.standard_normal((1, 16, 4)).astype(np.float32))

#: How people write positions of words, (batch, steps) to what is added to (batch, steps, 4).
POSITIONS = {
    "arange": lambda s, x: s.embedding(ops.arange(ops.shape(x)[-1])),
    "from 0 in steps of 1": lambda s, x: s.embedding(ops.arange(0, ops.shape(x)[-1], 1)),
    "tf.range": lambda s, x: s.embedding(tf.range(start=0, limit=tf.shape(x)[-1], delta=1)),
    "expanded": lambda s, x: s.embedding(ops.expand_dims(ops.arange(ops.shape(x)[1]), 0)),
    "variable cut": lambda s, x: s.table[: ops.shape(x)[1]],
    "variable cut by its shape": lambda s, x: s.table[: x.shape[1], :],
    "inner axis cut": lambda s, x: s.stack[:, : ops.shape(x)[1]],
    "constant cut": lambda s, x: WAVES[:, : tf.shape(x)[1], :],
    "sliced and repeated": lambda s, x: ops.broadcast_to(
        ops.slice(s.table, (0, 0), (ops.shape(x)[1], 4)), (*ops.shape(x), 4)
    ),
    "waves": lambda s, x: ops.sin(ops.expand_dims(ops.arange(ops.shape(x)[1], dtype="float32"), 1) / s.steps),
    "only a table": lambda s, x: s.inner(x),
}


class Rows(L.Layer):
    """The same rows for every sample, however many there are: none of what it is called with."""

    def build(self, shape):
        self.table = self.add_weight(shape=(6, 4), name="table", initializer="random_normal")

    def call(self, x):
        return ops.repeat(ops.expand_dims(self.table, 0), ops.shape(x)[0], axis=0)[:, :1]


class Positions(L.Layer):
    """Words, and where they stand."""

    def __init__(self, positions, **kwargs):
        super().__init__(**kwargs)
        self.positions, self.words, self.embedding = positions, L.Embedding(9, 4), L.Embedding(16, 4)
        self.inner = Rows()
        self.steps = np.array([1.0, 3.0, 10.0, 30.0], np.float32)

    def build(self, shape):
        self.table = self.add_weight(shape=(16, 4), name="table", initializer="random_normal")
        self.stack = self.add_weight(shape=(1, 16, 4), name="stack", initializer="random_normal")

    def call(self, x):
        return self.words(x) + self.positions(self, x)


def test_positions_to_an_open_length() -> None:
    """Each spelling is read, at every length and batch; its tables are constants of the graph that train."""
    words = keras.Input((None,), dtype="int32", name="words")
    outputs = {name: Positions(how, name=f"p{i}")(words) for i, (name, how) in enumerate(POSITIONS.items())}
    model = keras.Model(words, outputs)
    opened = TensorFlowBackend().open(model)
    for shape in ((2, 5), (3, 8)):
        batch = RNG.integers(0, 9, shape).astype(np.int32)
        found, wanted = opened.run({"words": batch}), model(batch)
        for name in POSITIONS:
            np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5, atol=1e-6, err_msg=name)
    assert not [node for node in opened.graph.nodes if node.op.startswith(("keras::", "tf::"))]
    assert sum(variable.trainable for variable in opened.native.parameters.values()) >= 2 * len(POSITIONS) - 2


def test_a_causal_mask_of_an_open_length() -> None:
    """Ranges are compared and repeated for the batch; Softmax takes the mask; the layer's products are integers."""

    class Causal(L.Layer):
        def build(self, shape):
            self.queries, self.keys, self.softmax = L.Dense(4), L.Dense(4), L.Softmax()

        def call(self, x):
            batch, steps = ops.shape(x)[0], ops.shape(x)[1]
            behind = ops.expand_dims(ops.arange(steps), 1) >= ops.arange(steps)
            mask = ops.broadcast_to(ops.expand_dims(behind, 0), (batch, steps, steps))
            scores = ops.matmul(self.queries(x), ops.transpose(self.keys(x), (0, 2, 1)))
            return ops.matmul(self.softmax(scores, mask=mask), x)

    rows = keras.Input((None, 6), name="rows")
    model = keras.Model(rows, L.Dense(3, name="head")(Causal()(rows)))
    data = RNG.standard_normal((8, 5, 6)).astype(np.float32)
    sim = isobit.quantize(model, data, recipe="basic", method="minmax", progress=False)
    longer = RNG.standard_normal((3, 7, 6)).astype(np.float32)
    np.testing.assert_allclose(sim.run_float({"rows": longer})["head"], model(longer), rtol=1e-4, atol=1e-6)
    assert not [node for node in sim.graph.nodes if node.op.startswith("keras::")]
    assert sim.report.coverage.compute == 1


def test_attention_with_shared_keys() -> None:
    """Several queries read one head of keys and values."""
    rows = keras.Input((5, 8), name="rows")
    query = ops.reshape(L.Dense(16)(rows), (-1, 5, 4, 4))
    key, value = (ops.reshape(L.Dense(8)(rows), (-1, 5, 2, 4)) for _ in range(2))
    mixed = ops.reshape(ops.dot_product_attention(query, key, value), (-1, 5, 16))
    model = keras.Model(rows, L.Activation("linear", name="mixed")(mixed))
    batch = RNG.standard_normal((2, 5, 8)).astype(np.float32)
    found = TensorFlowBackend().open(model).run({"rows": batch})
    np.testing.assert_allclose(found["mixed"], model(batch), rtol=1e-4, atol=1e-6)


def _length(x):
    return ops.shape(x)[1]


#: What follows from an open length and is no range to it.
COMPUTED = {
    "norm pos": lambda x: (
        x + ops.expand_dims(ops.cast(ops.arange(_length(x)), "float32") / ops.cast(_length(x), "float32"), 1)
    ),
    "flip idx": lambda x: ops.take(x, _length(x) - 1 - ops.arange(_length(x)), axis=1),
    "one_hot": lambda x: ops.matmul(ops.one_hot(ops.arange(_length(x)), _length(x)), x),
    "mean by size": lambda x: ops.sum(x, 1) / ops.cast(_length(x), "float32"),
    "half": lambda x: x[:, : _length(x) // 2],
}


class Computes(L.Layer):
    """A function of its inputs."""

    def __init__(self, function, **kwargs):
        super().__init__(**kwargs)
        self.function = function

    def call(self, *inputs):
        return self.function(*inputs)


def test_what_follows_from_an_open_length() -> None:
    """A layer with numbers of its own that follow from the length stays whole, and is right at every length."""
    rows = keras.Input((None, 4), name="rows")
    model = keras.Model(rows, {name: Computes(f, name=f"c{i}")(rows) for i, (name, f) in enumerate(COMPUTED.items())})
    opened = TensorFlowBackend().open(model)
    for shape in ((2, 5, 4), (3, 8, 4)):
        batch = RNG.standard_normal(shape).astype(np.float32)
        found, wanted = opened.run({"rows": batch}), model(batch)
        for name in COMPUTED:
            np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_open_lengths_of_two_inputs_and_nan() -> None:
    """Lengths of two inputs are two where they need not agree, and entries that are NaN count."""
    rows, others = keras.Input((None, 4), name="rows"), keras.Input((None, 4), name="others")
    cut = Computes(lambda a, b: a[:, : _length(b)], name="cut")(rows, others)
    places = Computes(lambda a: ops.where(ops.isnan(a), 0.0, a) + ops.cast(ops.arange(_length(a)), "float32")[:, None])
    model = keras.Model([rows, others], {"cut": cut, "places": places(rows)})
    batch = {"rows": RNG.standard_normal((2, 8, 4)).astype(np.float32), "others": np.ones((2, 5, 4), np.float32)}
    batch["rows"][0, 2, 0] = np.nan
    found, wanted = TensorFlowBackend().open(model).run(batch), model(list(batch.values()))
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_opening_in_two_threads() -> None:
    """One model is opened at a time, and nothing of it stays in Keras."""
    kinds = (keras.Variable, tf.Tensor, keras.KerasTensor)
    before = [ops.arange, tf.range, L.Layer.symbolic_call, *(kind.__getitem__ for kind in kinds)]
    rows = keras.Input((None, 4), name="rows")
    counts = Computes(lambda x: x + ops.cast(ops.arange(_length(x)), "float32")[:, None], name="counts")(rows)
    model = keras.Model(rows, counts)
    with ThreadPoolExecutor(2) as threads:
        opened = list(threads.map(lambda _: TensorFlowBackend().open(model), range(2)))
    after = [ops.arange, tf.range, L.Layer.symbolic_call, *(kind.__getitem__ for kind in kinds)]
    assert all(one is other for one, other in zip(before, after, strict=True))
    assert all(not node.op.startswith("keras::") for one in opened for node in one.graph.nodes)


def test_whole_numbers_and_truths_as_keras_promotes_them() -> None:
    """A choice, joins and arithmetic of several types."""
    whole = keras.Input((5,), dtype="int32", name="whole")
    functions = {
        "chosen": lambda a: ops.where(a > 4, a, 0.5),
        "joined": lambda a: ops.concatenate([a, ops.cast(a, "float32") * 0.5], 1),
        "stacked": lambda a: ops.stack([a, ops.cast(a, "float32") * 0.5], 1),
        "both": lambda a: ops.cast((a > 4) * (a > 2), "int32"),
        "none": lambda a: ops.cast(ops.logical_not(ops.max(a > 4, 1)), "int32"),
    }
    model = keras.Model(
        whole, {name: Computes(f, name=f"n{i}")(whole) for i, (name, f) in enumerate(functions.items())}
    )
    batch = RNG.integers(0, 9, (2, 5)).astype(np.int32)
    found, wanted = TensorFlowBackend().open(model).run({"whole": batch}), model(batch)
    for name in functions:
        np.testing.assert_allclose(found[name], wanted[name], err_msg=name)


def test_a_model_that_crops_more_than_a_made_up_length_is_exported(tmp_path):
    """What compares the export with TensorFlow takes a length that the model takes, or none."""
    x = keras.Input((None, 4))
    y = L.Conv1D(8, 3, padding="same", activation="relu")(L.Conv1D(4, 5)(x))
    model = keras.Model(x, L.Conv1D(3, 1)(L.Cropping1D(20)(y)))
    data = RNG.standard_normal((8, 80, 4)).astype(np.float32)
    sim = isobit.quantize(model, data, progress=False)
    assert sim.export(tmp_path / "cropped").checks[0].equal > 0.99
    cut = keras.Model(x, L.Dense(3)(L.Reshape((37 * 4,))(x)))  # takes one length alone, and does not say which
    data = RNG.standard_normal((8, 37, 4)).astype(np.float32)
    sim = isobit.quantize(cut, data, progress=False)
    assert sim.export(tmp_path / "cut").checks[0].equal > 0.99


#: Axes of size 1 put between and taken from axes whose sizes are open.
UNIT_AXES = {
    "second": lambda x: ops.expand_dims(x, 1),
    "third": lambda x: ops.expand_dims(x, 2),
    "two": lambda x: x[:, None, None],
    "last": lambda x: x[..., None],
    "taken": lambda x: ops.squeeze(x[:, None, ..., :1], (1, -1)),
}


def test_axes_of_one_between_open_ones(tmp_path) -> None:
    """Sizes are those of the axes that they were, at other sizes than the example's and in the written file."""
    x = keras.Input((None, None, 4))
    model = keras.Model(x, {name: make(L.Dense(4)(x)) * 1.5 for name, make in UNIT_AXES.items()})
    sim = isobit.quantize(model, [RNG.standard_normal((4, 6, 5, 4)).astype(np.float32)], progress=False)
    exported = sim.export(tmp_path)
    other = RNG.standard_normal((3, 2, 7, 4)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(exported["model"]))
    values = session.run(None, {session.get_inputs()[0].name: other})
    written = dict(zip((output.name for output in session.get_outputs()), values, strict=True))
    floats = sim.run_float(other)
    expected = {value.shape: np.asarray(value) for value in keras.tree.flatten(model(other))}
    assert {value.shape for value in written.values()} == expected.keys()
    for value in floats.values():
        np.testing.assert_allclose(value, expected[value.shape], rtol=1e-4, atol=1e-5)


CAUSAL, PADDED = np.tril(np.ones((1, 6, 6), bool)), np.zeros((1, 6, 6), bool)
#: What decoders make of a causal mask and one of padding (batch, 1, steps), joined by a choice.
CHOSEN = {
    "of constants": lambda kept: ops.where(kept, CAUSAL, PADDED),
    "of what was computed": lambda kept: ops.where(kept, ops.tril(ops.ones((1, 6, 6), dtype="bool")), PADDED),
    "of a signal": lambda kept: ops.where(CAUSAL, kept, PADDED),
    "of whole numbers": lambda kept: ops.where(kept, 1, 0) * CAUSAL.astype("int32"),
    "of short ones": lambda kept: ops.where(CAUSAL, ops.cast(kept, "int8"), PADDED.astype("int8")),
}


@pytest.mark.parametrize("form", CHOSEN)
def test_masks_that_are_chosen_run_in_onnxruntime(form: str, tmp_path) -> None:
    x, padding = keras.Input((6, 8)), keras.Input((6,), dtype="int32")
    mask = CHOSEN[form](ops.cast(padding, "bool")[:, None, :])
    chosen = ops.cast(mask, "float32")
    y = L.MultiHeadAttention(2, 4)(x, x, attention_mask=ops.cast(mask, "bool"))
    model = keras.Model([x, padding], [y, chosen])
    data = [RNG.standard_normal((4, 6, 8)).astype(np.float32), np.tril(np.ones((4, 6), np.int32))]
    sim = isobit.quantize(model, [data], progress=False)
    session = onnxruntime.InferenceSession(str(sim.export(tmp_path)["model"]))
    found = session.run(None, dict(zip([entry.name for entry in session.get_inputs()], data, strict=True)))
    np.testing.assert_array_equal(found[1], data[1][:, None, :] * CAUSAL)
    np.testing.assert_allclose(found[0], model(data)[0], atol=0.1)
