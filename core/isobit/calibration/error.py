"""The error of rounding a histogram's values to a grid, for many grids at once."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from isobit import arithmetic
from isobit.encodings.ranges import Grids
from isobit.statistics.count_bits import counted_by_numpy, kernels
from isobit.statistics.histogram import Histogram


class Bins(NamedTuple):
    """Edges and counts of the non-empty bins by rising value, in counted elements, tails in parts of them."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    counts: NDArray[np.float64]

    @classmethod
    def of(cls, histogram: Histogram) -> Bins:
        """The bins of a histogram, and what lies between its last counted value and its exact bound on each side.

        Where one element of n was counted, about n lie beyond the largest counted one, and the largest of all is known:
        they are spread exponentially over that gap, half of them over each next part of equal width. Without them a
        range would be judged by tails that the choice of elements happens to have missed.
        """
        low, high, counts = histogram.bins()
        parts = int(np.log2(histogram.elements / histogram.counted)) if histogram.counted else 0
        bins = cls(low, high, counts.astype(np.float64))
        if parts < 1:
            return bins
        shares: NDArray[np.float64] = np.exp2(-np.arange(1.0, parts + 1))
        if histogram.maximum > high[-1]:
            bins = _joined(bins, cls(*_pairs(np.linspace(high[-1], histogram.maximum, parts + 1)), shares))
        if histogram.minimum < low[0]:
            bins = _joined(cls(*_pairs(np.linspace(histogram.minimum, low[0], parts + 1)), shares[::-1]), bins)
        return bins

    def thinned(self) -> Bins:
        """The same values in fewer bins: many bins for a tensor's small values do not help to tell grids apart.

        Below 1/16 of the largest value bins have 4 bits of mantissa, and below 2**-20 of it there is one for each sign.
        """
        middle = (self.low + self.high) / 2
        mantissa, exponent = np.frexp(middle)
        below = int(np.frexp(max(-self.low[0], self.high[-1]))[1]) - exponent
        mantissa_steps = np.where(below < 4, 256, 32)  # mantissas in [1/2, 1) use half of them: 7 and 4 bits
        group = exponent * 1024 + np.floor(np.abs(mantissa) * mantissa_steps)
        group = np.where(below > 20, 0, group) * 2 + (middle < 0)
        starts = np.flatnonzero(np.diff(group, prepend=np.nan) != 0)
        ends = np.append(starts[1:], group.size) - 1
        return Bins(self.low[starts], self.high[ends], np.add.reduceat(self.counts, starts))


def _joined(first: Bins, second: Bins) -> Bins:
    return Bins(*(np.concatenate(pair) for pair in zip(first, second, strict=True)))


def _pairs(edges: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return edges[:-1], edges[1:]


def mean_square_errors(bins: Bins, grids: Grids, clip_weight: float = 1.0) -> NDArray[np.float64]:
    """Mean square error of each of `grids`, outside the grid times `clip_weight`.

    Values are taken as evenly spread within their bin; for integer grids the mean over a bin is exact.
    """
    total = float(bins.counts.sum())
    if grids.spec.is_integer and not counted_by_numpy():
        return _integer_sums(bins, grids, clip_weight) / total
    error = _integer_errors if grids.spec.is_integer else _float_errors
    return np.asarray(error(bins, grids, clip_weight) @ bins.counts / total, np.float64)


def _integer_sums(bins: Bins, grids: Grids, clip_weight: float) -> NDArray[np.float64]:
    """`_integer_errors` times the counts, in one go by the numba kernel."""
    scales, zeros = grids.scale.astype(np.float64), grids.zero_point.astype(np.float64)
    sums = np.empty(scales.size)
    edges = (np.ascontiguousarray(part) for part in bins)
    kernels("isobit.calibration.kernels").integer_errors(
        *edges, scales, zeros, grids.spec.q_min, grids.spec.q_max, clip_weight, sums
    )
    return sums


def _integer_errors(bins: Bins, grids: Grids, clip_weight: float) -> NDArray[np.float64]:
    """Mean square error over each bin: (grids, bins)."""
    scale = grids.scale.astype(np.float64)[:, None]
    zero = grids.zero_point.astype(np.float64)[:, None]
    first, last = grids.spec.q_min - zero, grids.spec.q_max - zero
    low, high = bins.low / scale, bins.high / scale
    width = high - low
    single = width == 0
    mean = _integral(high, first, last, clip_weight)
    mean -= _integral(low, first, last, clip_weight)
    if not single.any():
        mean /= width
    else:
        np.divide(mean, width, out=mean, where=~single)
        points = low[single]
        start, stop = (np.broadcast_to(end, low.shape)[single] for end in (first, last))
        distance = points - np.clip(np.rint(points), start, stop)
        mean[single] = np.square(distance) * np.where((points < start) | (points > stop), clip_weight, 1.0)
    mean *= np.square(scale)
    return mean


def _integral(
    u: NDArray[np.float64], first: NDArray[np.float64], last: NDArray[np.float64], clip_weight: float
) -> NDArray[np.float64]:
    """Integral from 0 to `u` of the squared distance to the nearest integer in [first, last].

    Each unit cell gives 1/12; from its middle on it grows as the third power, also beyond the ends of the grid.
    """
    nearest = np.rint(u)
    np.maximum(nearest, first, out=nearest)
    np.minimum(nearest, last, out=nearest)
    distance = u - nearest
    cube = distance * distance
    cube *= distance
    if clip_weight != 1.0:
        np.multiply(cube, clip_weight, out=cube, where=(u < first) | (u > last))
    cube /= 3
    nearest /= 12
    cube += nearest
    return cube


def _float_errors(bins: Bins, grids: Grids, clip_weight: float) -> NDArray[np.float64]:
    """Square error in the middle of each bin: float8 has wider steps than the bins' 7 bits of mantissa."""
    scale = grids.scale.astype(np.float64)[:, None]
    middle = (bins.low + bins.high) / 2
    rounded = arithmetic.cast(middle / scale, grids.spec.dtype).astype(np.float64) * scale
    outside = np.abs(middle) > arithmetic.largest_float(grids.spec.dtype) * scale
    return np.asarray(np.square(rounded - middle) * np.where(outside, clip_weight, 1.0))
