"""Gradients of learned grids in TensorFlow, against the formula of LSQ in NumPy and finite differences of the loss."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from isobit.encodings import Encoding, LearnedGrid
from isobit.encodings.learned_grid import gradients, learned_encoding
from isobit.graph import Tensor
from isobit_tensorflow.simulate.quantizers import Quantizer

GRIDS = {
    "symmetric": (Encoding.of("int4", 0.11), LearnedGrid(np.float32(0.3), unit=0.5)),
    "asymmetric": (Encoding.of("uint4", 0.11, 6), LearnedGrid(np.float32(0.3), zero_point_levels=15)),
    "per channel": (
        Encoding.of("int3 per-channel", [0.1, 0.2, 0.3], 0, axis=1),
        LearnedGrid(np.array([0.1, 0.2, 0.3], np.float32)),
    ),
    "per block": (
        Encoding.of("int4 block=4", np.full((4, 2), 0.1) * [[1, 2]], 0, axis=1),
        LearnedGrid(np.full((4, 2), 0.5, np.float32)),
    ),
    "pact": (Encoding.of("uint4", 0.11), LearnedGrid(np.float32(1), rounding=False)),
}


@pytest.mark.parametrize("is_traced", [False, True])
@pytest.mark.parametrize("name", GRIDS)
def test_gradients_are_those_of_lsq(name: str, is_traced: bool) -> None:
    """Against `gradients`, which is the papers' formula in float64."""
    encoding, grid = GRIDS[name]
    quantizer = Quantizer.of(Tensor("x"), encoding, grid)
    rng = np.random.default_rng(3)
    shape = (4, 8) if name == "per block" else (5, 3, 7)
    values, upstream = (rng.normal(0.1, 0.7, shape).astype(np.float32) for _ in range(2))
    watched = [quantizer.log_scale.value, quantizer.offset.value]

    def backward() -> tuple[tf.Tensor, list[tf.Tensor]]:
        x = tf.constant(values)
        with tf.GradientTape() as tape:
            tape.watch([x, *watched])
            result = quantizer(x)
        return result, tape.gradient(result, [x, *watched], tf.constant(upstream), unconnected_gradients="zero")

    result, (by_x, by_log_scale, by_offset) = (tf.function(backward) if is_traced else backward)()
    np.testing.assert_array_equal(result, encoding.fake_quantize(values))
    expected_x, by_scale, by_zero = gradients(values, upstream, encoding, rounding=grid.rounding)
    axes = {"per channel": (0, 2)}.get(name, (0, 1, 2))
    total = by_scale.reshape(4, 2, 4).sum(2) if name == "per block" else by_scale.sum(axes)
    np.testing.assert_array_equal(by_x, expected_x.astype(np.float32))
    np.testing.assert_allclose(by_log_scale, grid.factor * encoding.scale * total, rtol=2e-4, atol=1e-6)
    expected_offset = 0.3 * 15 * by_zero.sum() if grid.zero_point_levels else 0
    np.testing.assert_allclose(by_offset, np.broadcast_to(expected_offset, by_offset.shape), rtol=2e-4)


@pytest.mark.parametrize("name", ["symmetric", "asymmetric", "per channel", "wide blocks"])
def test_gradients_follow_the_loss(name: str) -> None:
    """Finite differences of the squared error, averaged over many values: there the rounding is a smooth function."""
    blocks = Encoding.of("int4 block=10000", np.full((4, 2), 0.1) * [[1, 2]], 0, axis=1)
    encoding = blocks if name == "wide blocks" else GRIDS[name][0]
    quantizer = Quantizer.of(Tensor("x"), encoding, LearnedGrid(np.ones(encoding.scale.shape, np.float32)))
    shape = (4, 20_000) if name == "wide blocks" else (40_000, 3, 1)
    values = np.random.default_rng(0).normal(0.1, 0.7, shape).astype(np.float32)

    def error(log_scale: float) -> float:
        moved = learned_encoding(encoding, LearnedGrid(np.float32(1)), log_scale)
        return float(np.square(moved.fake_quantize(values) - values.astype(np.float64)).mean())

    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(quantizer(tf.constant(values)) - values))
    found = tape.gradient(loss, quantizer.log_scale.value)
    slope = (error(0.05) - error(-0.05)) / 0.1
    assert float(tf.reduce_sum(found)) == pytest.approx(slope, rel=0.1, abs=0.001)


def test_gradients_of_a_shared_grid_add_up() -> None:
    """Of tensors that one scale rounds, a reused layer's or those that a Concat joins."""
    first = Quantizer.of(Tensor("x"), Encoding.of("uint4", 0.2, 3), LearnedGrid(np.float32(0.3), zero_point_levels=15))
    second = Quantizer.of(Tensor("y"), Encoding.of("uint4", 0.2, 3))
    second.relate(first)
    values, upstream = np.random.default_rng(5).normal(0.3, 1, (2, 2, 50)).astype(np.float32)
    with tf.GradientTape() as tape:
        result = tf.stack([first(tf.constant(values[0])), second(tf.constant(values[1]))])
    found = tape.gradient(result, [first.log_scale.value, first.offset.value], tf.constant(upstream))
    _, by_scale, by_zero = gradients(values, upstream, Encoding.of("uint4", 0.2, 3))
    np.testing.assert_allclose(found[0], 0.3 * 0.2 * by_scale.sum(), rtol=1e-4)
    np.testing.assert_allclose(found[1], 0.3 * 15 * by_zero.sum(), rtol=1e-4)
