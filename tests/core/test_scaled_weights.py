"""The noise of rounding for many scalings at once, against one at a time."""

from __future__ import annotations

import numpy as np
import pytest

from isobit.encodings import QuantSpec, encode_weight
from isobit.graph import Weight
from isobit.placement import Placement
from isobit.techniques.input_scaling.rounding_noise import rounding_noise

RNG = np.random.default_rng(11)


@pytest.mark.parametrize(
    "spec",
    ["int8", "int8 per-channel", "uint4 per-channel asymmetric", "int4 block=8", "int4 lpbq=8", "float8e4m3"],
)
def test_noise_is_that_of_the_encodings_of_each_scaled_weight(spec: str) -> None:
    weight = RNG.standard_normal((12, 32)).astype(np.float32)
    factors = RNG.uniform(0.2, 5, (6, 32)).astype(np.float32)
    weight.setflags(write=False)
    placement = Placement(Weight("w"), QuantSpec.parse(spec), "weight", block_axis=1)
    noises = rounding_noise(weight, factors, placement)
    for noise, factor in zip(noises, factors, strict=True):
        scaled = weight * factor
        encoding = encode_weight(scaled, placement.spec, block_axis=1)
        if placement.spec.is_integer:
            scale = np.array(np.broadcast_to(encoding.broadcast(scaled.shape)[0], scaled.shape), np.float64)
            expected = (scale**2 / 12).sum(axis=0)
        else:
            expected = ((encoding.fake_quantize(scaled) - scaled).astype(np.float64) ** 2).sum(axis=0)
        np.testing.assert_allclose(noise, expected, rtol=1e-5)


def test_what_is_zero_is_rounded_without_noise() -> None:
    weight = RNG.standard_normal((4, 8)).astype(np.float32)
    weight[2] = 0
    placement = Placement(Weight("w"), QuantSpec.parse("int8 per-channel"), "weight")
    factors = np.ones((1, 8), np.float32)
    (with_zeros,) = rounding_noise(weight, factors, placement)
    (without,) = rounding_noise(np.delete(weight, 2, axis=0), factors, placement)
    np.testing.assert_array_equal(with_zeros, without)
