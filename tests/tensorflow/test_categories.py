"""Numbers as categories in the model: comparisons that every runtime has, against Keras and in the written file."""

from __future__ import annotations

import keras
import numpy as np
import onnxruntime
import pytest
from keras import layers as L
from keras import ops

import isobit
from isobit_tensorflow.backend import TensorFlowBackend

RNG = np.random.default_rng(0)
REALS = np.concatenate([RNG.standard_normal((13, 4)), [[-1, 0, 1, 2]]]).astype(np.float32)  # boundaries themselves too
COUNTS = RNG.integers(0, 6, (14, 3)).astype(np.int32)
WORDS = RNG.integers(0, 12, (14, 3)).astype(np.int64)


def _adapted() -> L.Layer:
    layer = L.Discretization(num_bins=4, output_mode="multi_hot")
    layer.adapt(REALS)
    return layer


LAYERS = {
    "bins": (lambda: L.Discretization([-1.0, 0.0, 1.0]), REALS),
    "bins as counts": (lambda: L.Discretization([-1.0, 0.0, 1.0], output_mode="count"), REALS),
    "one bin": (lambda: L.Discretization([-1.0, 0.0, 1.0], output_mode="one_hot"), REALS[:, :1]),
    "adapted bins": (_adapted, REALS),
    "bins of whole numbers": (lambda: L.Discretization([1.5, 3.0]), COUNTS),
    "lookup": (lambda: L.IntegerLookup(vocabulary=[3, 5, 7, 9]), WORDS),
    "lookup with a mask": (lambda: L.IntegerLookup(vocabulary=[3, 5, 7], mask_token=0), WORDS),
    "lookup as vectors": (lambda: L.IntegerLookup(vocabulary=[3, 5, 7], output_mode="multi_hot"), WORDS),
    "lookup of one": (lambda: L.IntegerLookup(vocabulary=[3, 5], output_mode="one_hot"), WORDS[:, :1]),
    "lookup padded": (
        lambda: L.IntegerLookup(max_tokens=9, vocabulary=[3, 5], output_mode="count", pad_to_max_tokens=True),
        WORDS,
    ),
    "multi hot": (lambda: L.CategoryEncoding(6), COUNTS),
    "one hot": (lambda: L.CategoryEncoding(6, output_mode="one_hot"), COUNTS[:, :1]),
    "count": (lambda: L.CategoryEncoding(6, output_mode="count"), COUNTS),
    "own one hot": (lambda: L.Lambda(lambda x: ops.one_hot(x - 2, 4)), COUNTS),  # negative ones are zeros
    "own place": (lambda: L.Lambda(lambda x: ops.argmax(x, -1)), REALS),
    "own place of the least": (lambda: L.Lambda(lambda x: ops.argmin(x, 1, keepdims=True)), REALS),
    "own entries": (lambda: L.Lambda(lambda x: ops.take(x, np.array([2, 0, -1]), axis=1)), REALS),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_is_what_keras_computes(kind: str) -> None:
    make, data = LAYERS[kind]
    x = keras.Input(data.shape[1:], dtype=str(data.dtype), name="x")
    model = keras.Model(x, make()(x))
    opened = TensorFlowBackend().open(model)
    assert not [node.op for node in opened.graph.nodes if node.op.startswith("keras::")]
    (output,) = opened.run({"x": data}).values()
    np.testing.assert_array_equal(output, model(data))
    proto, _ = opened.to_onnx()
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(None, {"x": data})[0], output)


def test_a_layer_that_gives_another_type_than_it_says_is_read_in_that_it_says() -> None:
    x = keras.Input((3,), dtype="int64", name="x")
    lookup = L.IntegerLookup(vocabulary=[3, 5, 7], output_mode="multi_hot", mask_token=0)  # gives int64, says float32
    model = keras.Model(x, L.Dense(3)(lookup(x)))
    opened = TensorFlowBackend().open(model)
    (output,) = opened.run({"x": WORDS}).values()
    np.testing.assert_allclose(output, model(WORDS), rtol=1e-5)


@pytest.mark.parametrize("kind", ["hashing", "crossing"])
def test_what_cannot_be_written_says_what_to_do(kind: str) -> None:
    inputs = [keras.Input((1,), dtype="int64", name=name) for name in "ab"]
    y = L.Hashing(8)(inputs[0]) if kind == "hashing" else L.HashedCrossing(8)(tuple(inputs))
    opened = TensorFlowBackend().open(keras.Model(inputs, L.Dense(3)(L.Flatten()(L.Embedding(8, 4)(y)))))
    with pytest.raises(isobit.errors.ModelError, match="ahead of the model"):
        opened.to_onnx()


def test_loops_and_arrays_among_the_arguments_of_operations() -> None:
    rows = np.random.default_rng(0).standard_normal((3, 6, 8, 3)).astype(np.float32)
    turned = np.array([1, 0.1, 0, 0, 1, 0, 0, 0], np.float32)
    x = keras.Input((6, 8, 3), name="x")
    y = ops.map(lambda row: row * 2, ops.image.affine_transform(x, turned))
    model = keras.Model(x, y)
    (output,) = TensorFlowBackend().open(model).run({"x": rows}).values()
    np.testing.assert_allclose(output, model(rows), rtol=1e-4, atol=1e-5)
