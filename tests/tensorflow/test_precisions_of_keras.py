"""Models of other widths than float32, by policy, by variables, by inputs and by casts: opened in float32."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops

import isobit
from isobit.backend import CheckedModel
from isobit.encodings import Encoding
from isobit.graph import Weight
from isobit.graph.between import between
from isobit_tensorflow.backend import TensorFlowBackend

RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((4, 8, 8, 3)).astype(np.float32)
STEPS = RNG.standard_normal((3, 5, 8)).astype(np.float32)
WIDTHS = ("bfloat16", "float16", "float64")


def _network(width: str) -> keras.Model:
    x = keras.Input((8, 8, 3), dtype=width)
    y = L.BatchNormalization(dtype=width)(L.Conv2D(8, 3, use_bias=False, dtype=width)(x))
    y = L.Activation("gelu", dtype=width)(y) * 2
    return keras.Model(x, L.Dense(3, dtype=width, name="head")(L.GlobalAveragePooling2D(dtype=width)(y)))


@pytest.mark.parametrize("width", WIDTHS)
def test_models_of_one_width(width: str, tmp_path: Path) -> None:
    model = _network(width)
    sim = isobit.quantize(model, IMAGES.astype(np.float64), recipe="basic", method="minmax", progress=False)
    assert (
        sim.report.coverage.integer_multiply_adds == sim.report.coverage.multiply_adds
    )  # and the opened model was compared with Keras' own
    assert any(width in note for note in sim.graph.notes)
    assert {str(variable.dtype) for variable in sim.model.parameters.values()} == {"float32"}
    checks = sim.export(tmp_path / width).checks
    assert checks[0].equal == 1  # in float mode


def _cast(width: str) -> keras.Model:
    x = keras.Input((5, 8))
    y = ops.cast(ops.exp(ops.cast(L.Dense(8)(x), width) * 2), "float32")
    return keras.Model(x, L.Dense(3)(y))


def _attention(width: str) -> keras.Model:
    x = keras.Input((5, 8), dtype=width)
    y = L.MultiHeadAttention(2, 4, dtype=width)(x, x, use_causal_mask=True)
    return keras.Model(x, L.LayerNormalization(dtype=width)(L.Add(dtype=width)([x, y])))


@keras.saving.register_keras_serializable("tests")
class Whole(L.Layer):
    """Stays whole, as it loops over its own values in TensorFlow."""

    def call(self, x):
        import tensorflow as tf

        return tf.while_loop(lambda i, v: i < 2, lambda i, v: (i + 1, v * tf.cast(0.5, v.dtype)), (0, x))[1]


def _whole(width: str) -> keras.Model:
    x = keras.Input((5, 8), dtype=width)
    return keras.Model(x, L.Dense(3, dtype=width)(Whole(dtype=width)(x)))


@pytest.mark.parametrize("make", [_cast, _attention, _whole])
@pytest.mark.parametrize("width", WIDTHS)
def test_parts_of_another_width(make, width: str) -> None:
    model = make(width)
    opened = TensorFlowBackend().open(model)
    assert f"what is {width} in the model (variables, inputs, casts) is float32 here" in opened.graph.notes
    (output,) = opened.run({opened.graph.inputs[0]: STEPS}).values()
    assert output.dtype == np.float32
    coarse = {"bfloat16": 0.1, "float16": 0.02, "float64": 1e-4}[width]
    expected = ops.convert_to_numpy(ops.cast(model(STEPS), "float32"))
    np.testing.assert_allclose(output, expected, rtol=coarse, atol=coarse)


def test_an_input_of_another_width_is_noted_and_a_mixed_policy_is_not() -> None:
    x = keras.Input((5, 8), dtype="float64")
    assert any("float64" in note for note in TensorFlowBackend().open(keras.Model(x, L.Dense(3)(x))).graph.notes)
    x = keras.Input((5, 8))
    mixed = L.LayerNormalization(dtype="mixed_bfloat16")(L.Dense(8, dtype="mixed_bfloat16")(x))
    assert not [n for n in TensorFlowBackend().open(keras.Model(x, mixed)).graph.notes if "float32 here" in n]


@pytest.mark.parametrize("kind", ["attention", "grouped", "operation"])
def test_causal_attention_over_open_lengths(kind: str) -> None:
    x = keras.Input((None, 8), name="x")
    if kind == "grouped":
        y = L.GroupQueryAttention(4, 4, 2)(x, x, use_causal_mask=True)
    elif kind == "operation":
        heads = L.Lambda(lambda t: ops.reshape(t, (ops.shape(t)[0], ops.shape(t)[1], 2, 4)))(x)
        y = ops.dot_product_attention(heads, heads, heads, is_causal=True)
    else:
        y = L.MultiHeadAttention(2, 4)(x, L.Dense(8)(x)[:, 1:], use_causal_mask=True)
    model = keras.Model(x, y)
    opened = TensorFlowBackend().open(model)
    assert not [node.op for node in opened.graph.nodes if node.op.startswith("keras::")]
    for length in (5, 3):
        (output,) = opened.run({"x": STEPS[:, :length]}).values()
        np.testing.assert_allclose(output, model(STEPS[:, :length]), rtol=1e-4, atol=1e-5)
    opened.to_onnx()


def test_gradients_of_large_parts_fit_into_float16() -> None:
    """The error is a sum over all elements; of so many the gradient by a weight is beyond the largest of float16."""
    found = []
    images = 8 * np.abs(np.random.default_rng(0).standard_normal((16, 48, 48, 3))).astype(np.float32)
    for policy in ("float32", "mixed_float16"):
        keras.utils.set_random_seed(0)
        x = keras.Input((48, 48, 3))
        y = L.Conv2D(8, 3, dtype=policy, activation="relu")(L.Conv2D(8, 3, dtype=policy, activation="relu")(x))
        model = CheckedModel.of(TensorFlowBackend().open(keras.Model(x, L.Activation("linear", dtype="float32")(y))))
        (name,), last = model.graph.inputs, [node for node in model.graph.nodes if node.op == "Conv"][-1]
        wanted = next(use.node.outputs[0] for use in model.graph.uses(last.outputs[0]))
        weight = last.inputs[1] or ""
        (output,) = model.run({name: images}).values()
        exact = np.moveaxis(output.astype(np.float32), -1, 1)  # as the graph has channels
        model.set_quantizers({Weight(weight): Encoding.of("int2 per-tensor", 0.1)})
        part = between(model.graph, [name], [wanted])
        found.append(model.part_error(part, {weight: model.weight(weight)}, {name: images}, {wanted: exact})[1][weight])
    assert np.abs(found[0]).max() > np.finfo(np.float16).max
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=0.01 * np.abs(found[0]).max())
