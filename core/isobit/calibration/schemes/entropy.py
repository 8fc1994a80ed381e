"""Entropy: the range whose grid keeps most of the distribution, by Kullback-Leibler divergence.

Source: Migacz, "8-bit inference with TensorRT", GTC 2017, carried over to signed, asymmetric and narrower grids.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isobit.calibration.error import Bins
from isobit.calibration.search import Floats, first_best, smallest_error, thresholds
from isobit.encodings.quant_spec import QuantSpec
from isobit.encodings.ranges import Grids, candidate_grids
from isobit.statistics.histogram import Histogram

MOST_BITS = 8

_BINS = 2048  # linear bins up to the largest value, and less than twice that
_STEPS = 32  # thresholds in each power of two
_SUBNORMAL = 2.0**-126


@dataclass(frozen=True)
class Entropy:
    """The threshold on magnitudes with the smallest divergence of the rounded from the clipped distribution.

    P are the values in linear bins, clipped values counted in the outermost occupied bin that is left; Q spreads what
    falls on one level of the grid, clipped values apart, evenly over that level's occupied bins. Zeros are exact in
    every grid and left out. Grids of more than 8 bits are finer than the bins, and float grids are not even: for them
    the range is that of `mse`.
    """

    name = "entropy"

    def range(self, histogram: Histogram, spec: QuantSpec) -> tuple[float, float]:
        """The range with the smallest divergence."""
        if self.note(spec):
            return smallest_error(histogram, spec, clip_weight=1.0)
        minimum, maximum = histogram.minimum, histogram.maximum
        bins = _without_zeros(Bins.of(histogram))
        if not bins.counts.size:
            return minimum, maximum
        largest = max(-minimum, maximum)
        width = 2.0 ** (np.floor(np.log2(largest)) - np.log2(_BINS))
        ends = thresholds(largest, _STEPS, width * 2 ** (spec.bits - 1))
        low, high = np.maximum(minimum, -ends), np.minimum(maximum, ends)
        grids = candidate_grids(low, high, spec)
        wide = grids.scale >= width  # a level narrower than a bin would seem to lose nothing
        wide[0] = True
        low, high = low[wide], high[wide]
        grids = Grids(spec, grids.scale[wide], grids.zero_point[wide])
        best = first_best(divergences(bins, grids, low, high, width))
        return float(low[best]), float(high[best])

    def note(self, spec: QuantSpec) -> str | None:
        """What is done instead for formats that the divergence says nothing about."""
        if spec.is_integer and spec.bits <= MOST_BITS:
            return None
        return f"entropy calibration is for integers of up to {MOST_BITS} bits: {spec.type_name} is calibrated by mse"

    @classmethod
    def from_text(cls, value: str | None) -> Entropy:
        """Entropy has no setting."""
        if value is not None:
            raise ValueError("entropy takes no setting")
        return cls()


def divergences(bins: Bins, grids: Grids, low: Floats, high: Floats, width: float) -> Floats:
    """Kullback-Leibler divergence of each grid from the values clipped to its range, over bins of `width`."""
    first, below, counts = _linear(bins, width)
    total = below[-1]
    start = np.clip(np.floor(low / width).astype(np.int64) - first, 0, counts.size)
    stop = np.clip(np.ceil(high / width).astype(np.int64) - first, 0, counts.size)
    cells = _cells(grids, start, stop, first, width)
    mass = np.diff(below[cells], axis=1)
    occupied = np.diff(np.concatenate([[0], np.cumsum(counts > 0)])[cells], axis=1)
    used = mass > 0
    level = np.divide(mass, occupied, out=np.ones(mass.shape), where=used)
    np.log(level, out=level)
    inside = below[stop] - below[start]
    cut_low, cut_high = below[start], total - below[stop]
    rows = np.arange(low.size)
    at_low, at_high = used.argmax(axis=1), used.shape[1] - 1 - used[:, ::-1].argmax(axis=1)
    q_part = np.einsum("ij,ij->i", mass, level) + cut_low * level[rows, at_low] + cut_high * level[rows, at_high]
    with np.errstate(divide="ignore", invalid="ignore"):
        result = (_p_part(counts, start, stop, cut_low, cut_high) - q_part) / total + np.log(inside / total)
    return np.where(inside > 0, np.maximum(result, 0.0), np.inf)


def _without_zeros(bins: Bins) -> Bins:
    is_normal = np.maximum(-bins.low, bins.high) >= _SUBNORMAL
    return Bins(bins.low[is_normal], bins.high[is_normal], bins.counts[is_normal])


def _linear(bins: Bins, width: float) -> tuple[int, Floats, Floats]:
    """Index of the first linear bin, the count below each edge, and the count in each bin."""
    # A bin without width holds one value. It is counted in the linear bin whose end farther from zero it is.
    single = bins.low == bins.high
    low = np.where(single & (bins.high > 0), np.nextafter(bins.low, -np.inf), bins.low)
    high = np.where(single & (bins.high <= 0), np.nextafter(bins.high, np.inf), bins.high)
    first, last = int(np.floor(low[0] / width)), int(np.ceil(high[-1] / width))
    upper = np.cumsum(bins.counts)
    ends = np.stack([low, high], axis=1).reshape(-1)
    below = np.interp(
        np.arange(first, last + 1) * width, ends, np.stack([upper - bins.counts, upper], axis=1).reshape(-1)
    )
    return first, below, np.diff(below)


def _cells(
    grids: Grids, start: NDArray[np.int64], stop: NDArray[np.int64], first: int, width: float
) -> NDArray[np.int64]:
    """Edges of each grid's levels as indices of linear bins; the outer levels reach to the ends of the range."""
    levels = np.arange(grids.spec.q_min, grids.spec.q_max) + 0.5
    cells = np.empty((start.size, levels.size + 2), np.int64)
    cells[:, 0], cells[:, -1] = start, stop
    borders = levels - grids.zero_point[:, None]
    borders *= grids.scale.astype(np.float64)[:, None] / width  # a power of two
    inner = np.rint(borders, out=borders) - first
    np.maximum(inner, start[:, None], out=inner)
    cells[:, 1:-1] = np.minimum(inner, stop[:, None], out=inner)
    return cells


def _p_part(
    counts: Floats, start: NDArray[np.int64], stop: NDArray[np.int64], cut_low: Floats, cut_high: Floats
) -> Floats:
    """Sum of ``p log p`` over the bins of each range, with the clipped counts in its outermost occupied bins."""
    sums = np.concatenate([[0.0], np.cumsum(_plogp(counts))])
    occupied = np.flatnonzero(counts > 0)
    lowest = occupied[np.minimum(np.searchsorted(occupied, start), occupied.size - 1)]
    highest = occupied[np.maximum(np.searchsorted(occupied, stop) - 1, 0)]
    at_low = counts[lowest] + cut_low
    at_high = np.where(lowest == highest, at_low, counts[highest])
    total = sums[stop] - sums[start]
    total += _plogp(at_low) - _plogp(counts[lowest])
    return np.asarray(total + _plogp(at_high + cut_high) - _plogp(at_high), np.float64)


def _plogp(p: Floats) -> Floats:
    return p * np.log(np.where(p > 0, p, 1.0))
