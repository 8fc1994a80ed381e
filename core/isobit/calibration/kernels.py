"""The numba kernel of the errors of grids. Compiled once a machine."""

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
