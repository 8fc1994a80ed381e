"""The numba kernels of the errors of grids. Compiled once a machine."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray


@numba.njit(
    numba.void(*[numba.float64[::1]] * 5, *[numba.float64] * 3, numba.float64[::1]),
    cache=True,
    nogil=True,
    error_model="numpy",
)
def integer_errors(
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    counts: NDArray[np.float64],
    scales: NDArray[np.float64],
    zeros: NDArray[np.float64],
    q_min: float,
    q_max: float,
    clip_weight: float,
    errors: NDArray[np.float64],
) -> None:
    """Sum of square errors of all bins on each integer grid; `isobit.calibration.error` has the formulas."""
    inverse, cube = 1 / scales, scales * scales * scales
    first, last = q_min - zeros, q_max - zeros
    errors[:] = 0
    for b in range(low.size):
        if low[b] == high[b]:
            for g in range(scales.size):
                u = low[b] * inverse[g]
                distance = u - min(max(np.rint(u), first[g]), last[g])
                weight = clip_weight if u < first[g] or u > last[g] else 1.0
                errors[g] += counts[b] * (distance * distance * weight) * scales[g] * scales[g]
            continue
        density = counts[b] / (high[b] - low[b])
        for g in range(scales.size):  # the inner loop, for speed: each grid still adds in the order of the bins
            start, stop = low[b] * inverse[g], high[b] * inverse[g]
            low_level = min(max(np.rint(start), first[g]), last[g])
            high_level = min(max(np.rint(stop), first[g]), last[g])
            before, after = start - low_level, stop - high_level
            before_weight = clip_weight if start < first[g] or start > last[g] else 1.0
            after_weight = clip_weight if stop < first[g] or stop > last[g] else 1.0
            thirds = after * after * after * after_weight - before * before * before * before_weight
            errors[g] += density * (thirds * (1 / 3) + (high_level - low_level) * (1 / 12)) * cube[g]


@numba.njit(
    numba.void(*[numba.float64[::1]] * 3, numba.float64[:, ::1], *[numba.float64[::1]] * 3),
    cache=True,
    nogil=True,
    error_model="numpy",
)
def table_errors(
    points: NDArray[np.float64],
    values: NDArray[np.float64],
    weights: NDArray[np.float64],
    table: NDArray[np.float64],
    scales: NDArray[np.float64],
    first: NDArray[np.float64],
    errors: NDArray[np.float64],
) -> None:
    """Weighted sum of the squares by which `table`, at the level of each point, differs from the point's value.

    `table` has a row of levels for each grid, `first` the level that a row begins with.
    """
    last = table.shape[1] - 1.0
    for g in range(scales.size):
        total, scale, start = 0.0, scales[g], first[g]
        row = table[g]
        for p in range(points.size):
            level = min(max(np.rint(points[p] / scale) - start, 0.0), last)
            difference = row[int(level)] - values[p]
            total += weights[p] * (difference * difference)
        errors[g] = total
