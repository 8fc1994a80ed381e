"""Means of clipped normal distributions, against samples."""

from __future__ import annotations

import numpy as np
import pytest

from isobit.techniques.layers.normal import NormalPerChannel

MEAN, DEVIATION = np.array([-3.0, -0.2, 0.0, 0.7, 4.0]), np.array([1.0, 0.5, 2.0, 0.1, 3.0])
SAMPLES = np.random.default_rng(0).standard_normal((400_000, 5)) * DEVIATION + MEAN


@pytest.mark.parametrize(
    ("low", "high", "slope", "function"),
    [
        (0.0, np.inf, 0.0, lambda x: np.maximum(x, 0)),
        (0.0, np.inf, 0.25, lambda x: np.where(x < 0, 0.25 * x, x)),
        (0.0, 6.0, 0.0, lambda x: np.clip(x, 0, 6)),
        (-1.0, 2.0, 0.0, lambda x: np.clip(x, -1, 2)),
    ],
)
def test_means_are_those_of_samples(low, high, slope, function) -> None:
    expected = function(SAMPLES).mean(axis=0)
    mean = NormalPerChannel(MEAN, DEVIATION).mean_between(low, high, slope)
    np.testing.assert_allclose(mean, expected, atol=0.02)


def test_a_channel_without_spread_is_its_mean() -> None:
    still = NormalPerChannel(np.array([-1.0, 2.0, 9.0]), np.zeros(3))
    np.testing.assert_allclose(still.mean_between(0.0, 6.0), [0, 2, 6], atol=1e-9)
    moved = still.moved(np.array([2.0, -1.0, 1.0]), np.array([0.0, 1.0, 0.0]))
    np.testing.assert_allclose(moved.mean, [-2, -1, 9])
