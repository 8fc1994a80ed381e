"""Layers that people write: variables in arithmetic, weights computed of others, heads tied to an embedding."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import onnxruntime
import pytest
from keras import layers as L
from keras import ops

import isobit
from isobit_tensorflow.backend import TensorFlowBackend

RNG = np.random.default_rng(0)
ROWS = RNG.standard_normal((16, 6)).astype(np.float32)
SEQUENCES = RNG.standard_normal((8, 5, 6)).astype(np.float32)
WORDS = RNG.integers(0, 9, (8, 5)).astype(np.int32)


class Own(L.Layer):
    """A layer of two vectors and a matrix, and what `compute` makes of them."""

    def __init__(self, compute) -> None:
        super().__init__()
        self.compute = compute

    def build(self, shape) -> None:
        names = ["scale", "shift", "kernel", "down", "up"]
        shapes = [(6,), (6,), (6, 6), (6, 2), (2, 6)]
        for name, size in list(zip(names, shapes, strict=True)):
            setattr(self, name, self.add_weight(shape=size, name=name, initializer="random_normal"))

    def call(self, x):
        return self.compute(self, x)


#: What a layer convolves with, and the size of its variable.
KERNELS = {
    "conv": (lambda s, x: ops.conv(x, s.kernel, strides=2, padding="same"), (3, 3, 4, 6)),
    "standardized": (lambda s, x: ops.conv(x, s.kernel - ops.mean(s.kernel, (0, 1, 2))), (3, 3, 4, 6)),
    "depthwise": (lambda s, x: ops.depthwise_conv(x, s.kernel, padding="valid"), (3, 3, 4, 2)),
    "scaled": (lambda s, x: ops.conv(x, s.kernel * 0.5, dilation_rate=2), (2, 3, 4, 3)),
}


class Kernel(L.Layer):
    """A convolution of the layer's own."""

    def __init__(self, compute, size) -> None:
        super().__init__()
        self.compute, self.size = compute, size

    def build(self, shape) -> None:
        self.kernel = self.add_weight(shape=self.size, name="kernel", initializer="random_normal")

    def call(self, x):
        return self.compute(self, x)


@pytest.mark.parametrize("kind", KERNELS)
def test_convolutions_by_variables(kind: str) -> None:
    x = keras.Input((7, 6, 4), name="x")
    model = keras.Model(x, L.ReLU()(Kernel(*KERNELS[kind])(x)))
    opened, images = TensorFlowBackend().open(model), np.random.default_rng(0).normal(size=(2, 7, 6, 4))
    assert [node.op for node in opened.graph.nodes if node.op == "Conv"] == ["Conv"]
    (output,) = opened.run({"x": images.astype(np.float32)}).values()
    np.testing.assert_allclose(output, model(images.astype(np.float32)), rtol=1e-4, atol=1e-5)


#: What a layer computes, which of its variables still train in the simulator, and how many constants take their place.
ARITHMETIC = {
    "left": (lambda s, x: s.scale * x + s.shift, {"scale", "shift"}, 0),
    "right": (lambda s, x: x * s.scale - s.shift, {"scale", "shift"}, 0),
    "minus": (lambda s, x: s.shift - x / s.scale, {"scale", "shift"}, 0),
    "power": (lambda s, x: s.scale ** ops.tanh(x), {"scale"}, 0),
    "matmul": (lambda s, x: x @ s.kernel, {"kernel"}, 0),
    "dot": (lambda s, x: ops.dot(x, s.kernel), {"kernel"}, 0),
    "einsum": (lambda s, x: ops.einsum("bi,ij->bj", x, s.kernel), {"kernel"}, 0),
    "converted": (lambda s, x: x * ops.convert_to_tensor(s.scale) + ops.cast(s.shift, x.dtype), {"scale", "shift"}, 0),
    "transposed": (lambda s, x: ops.matmul(x, ops.transpose(s.kernel)), {"kernel"}, 0),
    "reshaped": (lambda s, x: x * ops.reshape(s.scale, (1, 6)), {"scale"}, 0),
    "on the left": (lambda s, x: ops.transpose(ops.matmul(s.kernel, ops.transpose(x))), {"kernel"}, 0),
    "of one": (lambda s, x: x * ops.sigmoid(s.scale), set(), 1),
    "of two": (lambda s, x: x * (s.scale * s.shift + 1.0), set(), 1),
    "negative": (lambda s, x: x * -s.scale + s.shift[None], set(), 2),
    "standardized": (lambda s, x: x @ ((s.kernel - ops.mean(s.kernel, 0)) / (ops.std(s.kernel, 0) + 1e-5)), set(), 1),
    "low rank": (lambda s, x: ops.matmul(x, s.kernel + 0.5 * ops.matmul(s.down, s.up)), set(), 1),
    "a constant": (lambda s, x: ops.matmul(x, ops.eye(6)) * ops.convert_to_tensor([1.0, 2, 3, 4, 5, 6]), set(), 0),
}


@pytest.mark.parametrize("kind", ARITHMETIC)
def test_variables_in_arithmetic(kind: str) -> None:
    compute, stay, computed = ARITHMETIC[kind]
    x = keras.Input((6,), name="x")
    own = Own(compute)
    model = keras.Model(x, own(x))
    backend_model = TensorFlowBackend().open(model)
    (output,) = backend_model.run({"x": ROWS}).values()
    np.testing.assert_allclose(output, model(ROWS), rtol=1e-4, atol=1e-5)
    trained = {variable.path for variable in backend_model.native.trainable_variables}
    assert {f"own/{name}" for name in stay} <= trained
    assert len(trained) == len(stay) + computed
    assert sum("is computed of own/" in note for note in backend_model.graph.notes) == computed
    sim = isobit.quantize(
        model, ROWS, target="default", progress=False
    )  # compares with the model, and exports what it has
    assert not [note for note in sim.report.notes if "not compared" in note]


@pytest.mark.filterwarnings("ignore:Gradients do not exist")  # the layer has variables that it does not use
def test_what_stays_a_variable_is_trained() -> None:
    """One step of the simulator moves the variables as a step of the user's model does."""
    x = keras.Input((6,), name="x")
    model = keras.Model(x, Own(lambda s, t: s.scale * ops.tanh(t @ s.kernel) + s.shift)(x))
    sim = isobit.QuantSim(model)
    sim.backend_model.inner.train_in_float()
    native = sim.model
    targets = np.ones((16, 6), np.float32)
    for trained in (model, native):
        trained.compile(keras.optimizers.SGD(0.1), "mse")
        trained.fit(ROWS, targets, batch_size=16, epochs=1, verbose=0)
    expected = {variable.name: variable.numpy() for variable in model.trainable_variables}
    for variable in native.trainable_variables:
        np.testing.assert_allclose(variable.numpy(), expected[variable.name], rtol=1e-4, atol=1e-5)


def test_positions_by_an_embedding_of_a_range() -> None:
    class Positions(L.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.table = L.Embedding(5, 6)

        def call(self, x):
            return x + self.table(ops.arange(ops.shape(x)[1]))

    x = keras.Input((5, 6), name="x")
    model = keras.Model(x, L.Dense(3)(Positions()(x)))
    sim = isobit.quantize(model, SEQUENCES, progress=False)
    assert len(sim.model.trainable_variables) == 3


def test_additive_attention() -> None:
    x = keras.Input((5, 6), name="x")
    model = keras.Model(x, L.Dense(3)(L.AdditiveAttention()([x, x])))
    (output,) = TensorFlowBackend().open(model).run({"x": SEQUENCES}).values()
    np.testing.assert_allclose(output, model(SEQUENCES), rtol=1e-4, atol=1e-5)


class Head(L.Layer):
    """Scores of words by the table that looks them up."""

    def __init__(self, embedding, spelling) -> None:
        super().__init__()
        self.embedding, self.spelling = embedding, spelling

    def build(self, shape) -> None:
        self.bias = self.add_weight(shape=(9,), name="bias")

    def call(self, x):
        return self.spelling(x, self.embedding.embeddings) + self.bias


HEADS = {
    "matmul": lambda x, table: ops.matmul(x, ops.transpose(table)),
    "operator": lambda x, table: x @ ops.transpose(table),
    "axes": lambda x, table: ops.dot(x, ops.transpose(table, (1, 0))),
    "einsum": lambda x, table: ops.einsum("btd,vd->btv", x, table),
}


@pytest.mark.parametrize("kind", [*HEADS, "reversible"])
def test_a_head_tied_to_its_embedding(kind: str, tmp_path: Path) -> None:
    """One variable with two readers, which trains as one."""
    words = keras.Input((5,), dtype="int32", name="words")
    embedding = L.ReversibleEmbedding(9, 6) if kind == "reversible" else L.Embedding(9, 6)
    y = L.Dense(6, activation="tanh")(embedding(words))
    scores = embedding(y, reverse=True) if kind == "reversible" else Head(embedding, HEADS[kind])(y)
    model = keras.Model(words, scores)
    sim = isobit.quantize(model, WORDS, recipe="basic", progress=False)
    assert [node.op for node in sim.graph.nodes] == ["Gather", "Linear", "Tanh", "Linear"]
    tables = {info.source for info in sim.graph.weights.values() if info.shape == (9, 6)}
    assert len(tables) == 1
    assert len(sim.model.trainable_variables) == len(model.trainable_variables)
    (table,) = tables
    if kind in ("reversible", "axes"):  # one table, read as it is and transposed
        onnxruntime.InferenceSession(str(sim.export(tmp_path)["model"]))
    assert len([use for name, info in sim.graph.weights.items() if info.source == table
                for use in sim.graph.uses(name)]) == 2  # fmt: skip
    assert not [note for note in sim.report.notes if "not compared" in note]


class Open(L.Layer):
    """A layer that computes with sizes which the model leaves open."""

    def __init__(self, compute) -> None:
        super().__init__()
        self.compute = compute

    def build(self, shape) -> None:
        self.token = self.add_weight(shape=(1, 1, 6), name="token", initializer="random_normal")
        self.kernel = self.add_weight(shape=(6, 8), name="kernel")

    def call(self, x):
        return self.compute(self, x, ops.shape(x)[0], ops.shape(x)[1])


OPEN_SIZES = {
    "reshape": lambda s, x, b, n: ops.reshape(x @ s.kernel, (b, n, 2, 4)),
    "heads": lambda s, x, b, n: ops.reshape(
        ops.transpose(ops.reshape(x @ s.kernel, (b, n, 2, 4)), (0, 2, 1, 3)), (b, 2, n * 4)
    ),
    "broadcast": lambda s, x, b, n: ops.concatenate([ops.broadcast_to(s.token, (b, 1, 6)), x], 1),
    "tile": lambda s, x, b, n: ops.concatenate([ops.tile(s.token, (b, 1, 1)), x], 1),
    "repeat": lambda s, x, b, n: ops.concatenate([x, ops.repeat(s.token, b, axis=0)], 1),
    "zeros": lambda s, x, b, n: ops.concatenate([x, ops.zeros((b, 2, 6)) + 0.5], 1),
    "both": lambda s, x, b, n: ops.concatenate([x, ops.broadcast_to(s.token, (b, n, 6))], -1),
    "tensordot": lambda s, x, b, n: ops.tensordot(x, s.kernel, axes=1),
    "tensordot of two axes": lambda s, x, b, n: ops.tensordot(
        x[:, :1], ops.reshape(s.kernel, (1, 6, 8)), [[1, 2], [0, 1]]
    ),
}


@pytest.mark.parametrize("kind", OPEN_SIZES)
def test_sizes_that_are_open(kind: str) -> None:
    for length in (5, None) if kind in ("reshape", "tile", "both") else (5,):
        x = keras.Input((length, 6), name="x")
        layer = Open(OPEN_SIZES[kind])
        model = keras.Model(x, layer(x))
        backend_model = TensorFlowBackend().open(model)
        for data in (SEQUENCES, SEQUENCES[:3]):
            (output,) = backend_model.run({"x": data}).values()
            np.testing.assert_allclose(output, model(data), rtol=1e-4, atol=1e-5)
        assert not [node.op for node in backend_model.graph.nodes if "::" in node.op]
        backend_model.to_onnx()
    assert {v.path for v in backend_model.native.trainable_variables} <= {v.path for v in model.variables} | {
        "open/token",
        "open/kernel",
    }


def test_what_counts_the_batch_follows_it() -> None:
    x = keras.Input((5, 6), name="x")
    layer = Open(lambda s, t, b, n: t * ops.reshape(ops.cast(ops.arange(b), "float32"), (b, 1, 1)))
    model = keras.Model(x, layer(x))
    backend_model = TensorFlowBackend().open(model)
    for data in (SEQUENCES, SEQUENCES[:3]):
        np.testing.assert_allclose(next(iter(backend_model.run({"x": data}).values())), model(data), rtol=1e-5)
