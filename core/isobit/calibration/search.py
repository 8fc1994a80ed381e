"""The search for a range: candidates from wide to narrow, on a grid of numbers that does not depend on the data.

The first candidate is all that was seen. The others are numbers of few mantissa bits, so that two frameworks, whose
values differ in their last bits, choose among the same candidates; and of those that are as good as the best to a
thousandth the widest is taken, so that last bits do not choose between equals.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from isobit.calibration.error import Bins, mean_square_errors
from isobit.encodings.quant_spec import QuantSpec
from isobit.encodings.ranges import Grids, candidate_grids
from isobit.statistics.histogram import Histogram

TOLERANCE = 1e-3

_COARSE, _FINE = 4, 64  # candidates in each power of two
_OCTAVES = 8  # powers of two below the largest value
_ROUNDS, _NEAR = 3, 1 / 8  # of the search of scale and zero point together

Floats = NDArray[np.float64]


def first_best(costs: Floats) -> int:
    """The first candidate whose cost is within `TOLERANCE` of the lowest."""
    return int(np.argmax(costs <= costs.min() * (1 + TOLERANCE)))


def thresholds(largest: float, steps: int, lowest: float) -> Floats:
    """`largest`, then by falling value the numbers below it, down to `lowest`, with `steps` to each power of two."""
    top, bottom = (int(np.floor(np.log2(value))) for value in (largest, lowest))
    mantissas = 1 + np.arange(steps) / steps
    numbers = np.ldexp(mantissas[:, None], np.arange(bottom, top + 1)).T.reshape(-1)
    inside = numbers[(numbers < largest) & (numbers >= lowest)]
    return np.concatenate([[largest], inside[::-1]])


class Costs(Protocol):
    """The cost of each of some grids."""

    def __call__(self, grids: Grids) -> Floats:
        """(grids,)."""
        ...


def smallest_error(histogram: Histogram, spec: QuantSpec, clip_weight: float) -> tuple[float, float]:
    """The range whose grid has the smallest mean square error; errors of clipped values count `clip_weight` times."""
    if not histogram.counted:
        return histogram.minimum, histogram.maximum
    bins = Bins.of(histogram).thinned()
    return best_range(histogram, spec, lambda grids: mean_square_errors(bins, grids, clip_weight))


def best_range(histogram: Histogram, spec: QuantSpec, costs: Costs, *, gain: float = 0.0) -> tuple[float, float]:
    """The range whose grid costs least. The last step goes on while it gains that share.

    First one threshold on magnitudes is searched. An asymmetric grid has two ends: each is then searched with the other
    one held, and last scale and zero point together, because the error jumps where the zero point does.
    """
    minimum, maximum = histogram.minimum, histogram.maximum
    largest = max(-minimum, maximum)
    if not histogram.counted or largest == 0 or spec.bits > 16 or spec.type_name in ("float16", "bfloat16"):
        return minimum, maximum

    def cost(low: Floats, high: Floats) -> Floats:
        return costs(candidate_grids(low, high, spec))

    end = _scan(largest, lambda t: cost(np.maximum(minimum, -t), np.minimum(maximum, t)))
    low, high = max(minimum, -end), min(maximum, end)
    if spec.symmetric or minimum >= 0 or maximum <= 0:
        # The end may cut off a little of nearly equal values, if the snapped scale then represents them better.
        return min(low, max(high, 0.0)), max(high, min(low, 0.0))
    high = _scan(maximum, lambda t: cost(np.full(t.shape, low), t))
    low = -_scan(-minimum, lambda t: cost(-t, np.full(t.shape, high)))
    for _ in range(_ROUNDS):
        lows, highs = _grids_near(low, high, spec)
        inside = (lows > minimum * (1 + _NEAR)) & (highs < maximum * (1 + _NEAR))
        lows, highs = np.append(low, lows[inside]), np.append(high, highs[inside])
        found = cost(lows, highs)
        best = first_best(found)
        if best == 0 or found[best] > found[0] * (1 - gain):
            break
        low, high = float(lows[best]), float(highs[best])
    return low, high


def _scan(largest: float, cost: Callable[[Floats], Floats]) -> float:
    """The best threshold up to `largest`: coarse steps first, then fine ones between the best one's neighbours."""
    coarse = thresholds(largest, _COARSE, largest / 2**_OCTAVES)
    best = first_best(cost(coarse))
    above, below = coarse[max(best - 1, 0)], coarse[min(best + 1, coarse.size - 1)]
    fine = thresholds(above, _FINE, below)
    return float(fine[first_best(cost(fine))])


def _grids_near(low: float, high: float, spec: QuantSpec) -> tuple[Floats, Floats]:
    """The ranges of grids whose scale and zero point are near those of [low, high], by falling scale."""
    grid = candidate_grids(np.array([low]), np.array([high]), spec)
    scale, zero = float(grid.scale[0]), int(grid.zero_point[0])
    scales = thresholds(scale * (1 + _NEAR), _FINE, scale / (1 + _NEAR))[1:, None]
    zeros = np.arange(max(zero - 2, spec.q_min), min(zero + 2, spec.q_max) + 1)
    return ((spec.q_min - zeros) * scales).reshape(-1), ((spec.q_max - zeros) * scales).reshape(-1)
