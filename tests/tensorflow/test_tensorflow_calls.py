"""Layers that call TensorFlow's own functions: read as the operations of `keras.ops`, with their weights quantized."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L

import isobit
from isobit_tensorflow.backend import TensorFlowBackend
from isobit_tensorflow.kernels.tensorflow_function import TensorFlowFunction
from isobit_tensorflow.read.tensorflow_calls import tensorflow_calls

IMAGES = np.random.default_rng(0).standard_normal((3, 8, 8, 3)).astype(np.float32)


@keras.saving.register_keras_serializable("tests")
class Calls(L.Layer):
    """A convolution, a linear layer, and a function of both."""

    def __init__(self, function, **settings) -> None:
        super().__init__(**settings)
        self.function = function
        self.conv, self.dense = L.Conv2D(8, 3, padding="same"), L.Dense(8)

    def build(self, shape) -> None:
        self.conv.build(shape)
        self.dense.build(shape)

    def call(self, x):
        return self.function(self, x)


def _attention(s, x):
    q = s.dense(tf.reshape(x, (-1, 64, 3)))
    return tf.matmul(tf.nn.softmax(tf.matmul(q, q, transpose_b=True) / tf.math.sqrt(8.0)), q)


def _norm(s, x):
    y = s.conv(x)
    mean, variance = tf.nn.moments(y, [1, 2], keepdims=True)
    return (y - mean) * tf.math.rsqrt(variance + 1e-3)


#: What a layer computes, and what stays TensorFlow's own.
FUNCTIONS = {
    "relu and mean": (lambda s, x: tf.reduce_mean(tf.nn.relu(s.conv(x)), axis=[1, 2]), ()),
    "split and concat": (lambda s, x: tf.concat(tf.split(s.conv(x), [2, 6], axis=-1)[::-1], axis=-1), ()),
    "gates": (lambda s, x: s.conv(x) * tf.sigmoid(s.dense(tf.reduce_mean(x, [1, 2], keepdims=True))), ()),
    "open size": (lambda s, x: tf.reshape(s.conv(x), [tf.shape(x)[0], 64, 8]), ()),
    "attention": (_attention, ()),
    "moments": (_norm, ()),
    "gelu of a direction": (lambda s, x: tf.nn.gelu(tf.math.l2_normalize(s.conv(x), axis=-1)), ()),
    "constants": (lambda s, x: tf.einsum("bhwc,cd->bhwd", tf.transpose(s.conv(x), [0, 2, 1, 3]), tf.ones((8, 3))), ()),
    "own filters": (lambda s, x: tf.nn.max_pool2d(tf.nn.conv2d(x, tf.ones((3, 3, 3, 4)), 1, "SAME"), 2, 2, "SAME"), ()),
    "indices": (lambda s, x: tf.gather(s.conv(x), tf.constant([0, 3, 1]), axis=1), ()),
    "rest of a split": (lambda s, x: tf.split(s.conv(x), [-1, 2], -1)[0], ()),
    "amounts of padding": (
        lambda s, x: tf.nn.conv2d(s.conv(x), tf.ones((3, 3, 8, 4)), 1, [[0, 0], [1, 1], [2, 0], [0, 0]]), ("conv2d_v2",)
    ),
    "choice": (lambda s, x: tf.cast(tf.argmax(s.conv(x), -1), tf.float32), ()),
    "cut and stacked": (lambda s, x: tf.stack([s.conv(x)[:, 1:-1], tf.abs(s.conv(x))[:, 2:]], axis=1), ()),
    "no counterpart": (lambda s, x: tf.nn.local_response_normalization(s.conv(x)), ("lrn",)),
    "space": (lambda s, x: tf.nn.depth_to_space(tf.nn.leaky_relu(s.conv(x), 0.1), 2), ("depth_to_space_v2",)),
}  # fmt: skip


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_reads_functions_of_tensorflow(kind: str) -> None:
    function, own = FUNCTIONS[kind]
    x = keras.Input((8, 8, 3), name="x")
    model = keras.Model(x, Calls(function)(x))
    opened = TensorFlowBackend().open(model)
    assert not [node.op for node in opened.graph.nodes if node.op == "keras::Calls"]
    assert tuple(n.name.split("/")[-1] for n in opened.graph.nodes if n.op == "keras::TensorFlowFunction") == own
    (output,) = opened.run({"x": IMAGES}).values()
    np.testing.assert_allclose(output, model(IMAGES), rtol=1e-3, atol=1e-4)


#: Calls with TensorFlow's own defaults, or with what its functions take in more than one form.
CALLS = {
    "argmax": lambda x: tf.argmax(x), "argmin": lambda x: tf.argmin(x),
    "argmax in int32": lambda x: tf.argmax(x, -1, tf.int32), "softmax": lambda x: tf.nn.softmax(x),
    "log_softmax": lambda x: tf.nn.log_softmax(x), "l2_normalize": lambda x: tf.math.l2_normalize(x),
    "reduce_mean": lambda x: tf.reduce_mean(x), "reduce_sum": lambda x: tf.reduce_sum(x, [0, -1], True),
    "reduce_max": lambda x: tf.reduce_max(x), "reduce_min": lambda x: tf.reduce_min(x, 1),
    "reduce_prod": lambda x: tf.reduce_prod(x, -1), "transpose": lambda x: tf.transpose(x),
    "split": lambda x: tf.split(x, 3), "split in rows": lambda x: tf.split(x, [1, -1, 1]),
    "split in one": lambda x: tf.split(x, [8], 1), "stack": lambda x: tf.stack([x, x]),
    "unstack": lambda x: tf.unstack(x), "gather": lambda x: tf.gather(x, [2, 0]),
    "squeeze": lambda x: tf.squeeze(x[:1, :]),
    "reverse": lambda x: tf.reverse(x, [1, -1]), "concat": lambda x: tf.concat([x, x], 0), "gelu": tf.nn.gelu,
    "leaky_relu": tf.nn.leaky_relu, "swish": tf.nn.silu, "swish of a slope": lambda x: tf.nn.silu(x, 2.0),
    "where": lambda x: tf.where(x > 0, x, 2.0), "clip": lambda x: tf.clip_by_value(x, -1, 1),
    "tile": lambda x: tf.tile(x, [1, 2, 1, 1]), "rank": lambda x: x * tf.cast(tf.rank(x), tf.float32),
    "pool": lambda x: tf.nn.max_pool2d(x, [2], [2], "VALID"), "mean pool": lambda x: tf.nn.avg_pool2d(x, 3, 1, "SAME"),
    "matmul": lambda x: tf.matmul(x, x, transpose_b=True), "divide": lambda x: tf.divide(x, 3),
    "pow": lambda x: tf.pow(tf.abs(x), 0.5), "equal": lambda x: tf.equal(x, x),
    "add": lambda x: tf.add([1.0, 2.0, 3.0], x),
    "zeros_like": lambda x: tf.zeros_like(x), "bias_add": lambda x: tf.nn.bias_add(x, [1.0, 2.0, 3.0]),
}  # fmt: skip


@pytest.mark.parametrize("kind", CALLS)
def test_defaults_are_those_of_tensorflow(kind: str) -> None:
    x = keras.Input(batch_shape=IMAGES.shape)
    with tensorflow_calls():
        y = CALLS[kind](x)
    found, expected = keras.Model(x, y)(IMAGES), CALLS[kind](tf.constant(IMAGES))
    for mine, theirs in zip(keras.tree.flatten(found), keras.tree.flatten(expected), strict=True):
        assert mine.dtype == theirs.dtype
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


def test_a_variable_that_keras_does_not_know_is_a_constant() -> None:
    variable = tf.Variable(np.random.default_rng(1).standard_normal((3, 5)).astype(np.float32))
    x = keras.Input((8, 8, 3), name="x")
    model = keras.Model(x, Calls(lambda s, x: tf.tensordot(s.conv(x)[..., :3], variable, 1))(x))
    opened = TensorFlowBackend().open(model)
    (output,) = opened.run({"x": IMAGES}).values()
    np.testing.assert_allclose(output, model(IMAGES), rtol=1e-3, atol=1e-4)


def test_tensorflow_refuses_symbolic_tensors_outside_of_a_layer() -> None:
    with pytest.raises(ValueError, match="KerasTensor"):
        tf.nn.relu(keras.Input((3,)))


@pytest.mark.parametrize(
    "function",
    [
        "os:system", "tensorflow.python.ops.io_ops:write_file", "builtins:eval", "sort_ops:f",
        "tensorflow.python.ops.math_ops:nothere", "tensorflow.python.ops.math_ops:np", "array_ops",
    ],
)  # fmt: skip
def test_a_file_names_no_function_that_does_more_than_compute(function: str, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "sort_ops.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(isobit.errors.ModelError, match="computes tensors"):
        TensorFlowFunction(function)
