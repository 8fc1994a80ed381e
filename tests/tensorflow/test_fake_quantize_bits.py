"""The quantizers of the TensorFlow backend are `isobit.arithmetic`, bit for bit, eager and in a tf.function."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from isobit.encodings import Encoding, LearnedGrid, PerBlock, PerChannel, QuantSpec
from isobit.graph import Tensor, Weight
from isobit.testing.conformance.quantizing import tie_values
from isobit_tensorflow.simulate.quantizers import Quantizer


def bits(array) -> np.ndarray:
    return np.asarray(array, np.float32).view(np.uint32)


def check(encoding: Encoding, values: np.ndarray) -> None:
    layer = Quantizer.of(Tensor("x"), encoding)
    expected = bits(encoding.fake_quantize(values))
    np.testing.assert_array_equal(bits(layer(values)), expected)
    traced = tf.function(lambda x: layer(x), autograph=False)
    np.testing.assert_array_equal(bits(traced(tf.constant(values))), expected)


@pytest.mark.parametrize("text", ["int8", "uint8", "int4", "uint16", "int2 strict", "int16", "uint3 symmetric"])
def test_ties_and_their_neighbours(text: str) -> None:
    spec = QuantSpec.parse(text)
    rng = np.random.default_rng(spec.bits)
    for seed in range(3):
        zero = 0 if spec.symmetric else int(rng.integers(spec.q_min, spec.q_max + 1))
        encoding = Encoding.of(spec, rng.uniform(1, 2) * 2.0 ** int(rng.integers(-40, 20)), zero)
        check(encoding, tie_values(encoding, seed))


@settings(max_examples=40, deadline=None)
@given(
    scale=st.floats(2.0**-60, 2.0**60, width=32),
    zero=st.integers(0, 255),
    steps=st.lists(st.floats(-300, 300, width=32), min_size=1, max_size=32),
)
def test_any_scale(scale: float, zero: int, steps: list[float]) -> None:
    encoding = Encoding.of("uint8", scale, zero)
    values = (np.array(steps, np.float64) * scale).astype(np.float32)
    layer = Quantizer.of(Tensor("x"), encoding)
    np.testing.assert_array_equal(bits(layer(values)), bits(encoding.fake_quantize(values)))


def test_scales_of_channels_and_blocks_in_any_order_of_axes() -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((6, 4, 3, 5)).astype(np.float32)
    channel = Encoding(
        QuantSpec("int", 4, granularity=PerChannel()),
        rng.uniform(0.1, 1, 6).astype(np.float32),
        np.zeros(6, np.int32),
        0,
    )
    block = Encoding(
        QuantSpec("int", 4, granularity=PerBlock(2)),
        rng.uniform(0.1, 1, (6, 2, 1, 1)).astype(np.float32),
        np.zeros((6, 2, 1, 1), np.int32),
        1,
    )
    for encoding in (channel, block):
        layer = Quantizer.of(Weight("w"), encoding)
        expected = encoding.fake_quantize(values)
        for axes in ((0, 1, 2, 3), (2, 3, 1, 0), (0, 2, 3, 1)):
            rounded = layer(values.transpose(axes), axes=axes)
            np.testing.assert_array_equal(bits(rounded), bits(expected.transpose(axes)))


def test_int32_bias_is_exact_far_out() -> None:
    encoding = Encoding.of(QuantSpec("int", 32, granularity=None), np.float32(1e-6))
    values = np.array([1000.0000001, -123.4567, 2147.4836, -3000.0, 3000.0, 0.0], np.float32)
    check(encoding, values)


@pytest.mark.parametrize("text", ["float16", "bfloat16", "float8e4m3", "float8e5m2"])
def test_smaller_floats(text: str) -> None:
    rng = np.random.default_rng(0)
    values = (rng.standard_normal(500) * np.exp(rng.uniform(-10, 8, 500))).astype(np.float32)
    check(Encoding.of(text, 0.37 if text.startswith("float8") else 1.0), values)


def test_gradients_pass_inside_the_grid_and_reach_a_learned_scale() -> None:
    assert Quantizer.of(Tensor("x"), Encoding.of("int4", 0.5)).trainable_variables == []
    layer = Quantizer.of(Tensor("x"), Encoding.of("int4", 0.5), LearnedGrid(np.float32(1)))
    assert [variable.name for variable in layer.trainable_variables] == ["log_scale"]
    x = tf.constant([-9.0, -1.3, 0.2, 9.0])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x)
    by_x, by_scale = tape.gradient(y, [x, layer.log_scale.value])
    np.testing.assert_array_equal(by_x, [0.0, 1.0, 1.0, 0.0])
    # of clip(round(x / s)) * s by s: the level outside, round(x / s) - x / s inside
    np.testing.assert_allclose(by_scale, 0.5 * (-8 + (-3 + 2.6) + (0 - 0.4) + 7), rtol=1e-5)


def test_switched_off_and_in_half_precision() -> None:
    layer = Quantizer.of(Tensor("x"), Encoding.of("int8", 0.1))
    x = np.array([0.123, 4.56], np.float32)
    layer.enabled = False
    np.testing.assert_array_equal(layer(x), x)
    layer.enabled = True
    half = layer(tf.constant(x, tf.float16))
    assert half.dtype == tf.float16
    wanted = Encoding.of("int8", 0.1).fake_quantize(x.astype(np.float16).astype(np.float32)).astype(np.float16)
    np.testing.assert_array_equal(half, wanted)
