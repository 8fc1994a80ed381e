"""The numba kernels of the search for factors. Compiled once a machine and cached."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

_Cube = NDArray[np.float32]

_READ = numba.types.Array(numba.float32, 3, "C", readonly=True)  # a writable one fits here too
_WRITTEN = numba.float32[:, :, ::1]
_ROWS = numba.types.Array(numba.float32, 2, "C", readonly=True)


@numba.njit(numba.void(_READ, _READ, _WRITTEN, _WRITTEN), fastmath={"nnan", "nsz"}, cache=True, nogil=True)
def scaled_extremes(weight: _Cube, factors: _Cube, low: _Cube, high: _Cube) -> None:  # pragma: no cover (compiled)
    """The least and the largest of ``weight * factors`` in each block, and 0.

    `weight` is (outputs, blocks, size), `factors` (blocks, size, changes), the results (outputs, blocks, changes): the
    innermost loop runs over the changes, where nothing waits for what comes before.
    """
    low[:] = 0
    high[:] = 0
    for o in range(weight.shape[0]):
        for b in range(weight.shape[1]):
            for i in range(weight.shape[2]):
                value = weight[o, b, i]
                for c in range(factors.shape[2]):
                    product = value * factors[b, i, c]
                    low[o, b, c] = min(low[o, b, c], product)
                    high[o, b, c] = max(high[o, b, c], product)


@numba.njit(numba.void(_ROWS, *[numba.float32[::1]] * 2, *[numba.float64[::1]] * 2), cache=True, nogil=True)
def add_columns(
    rows: NDArray[np.float32],
    low: NDArray[np.float32],
    high: NDArray[np.float32],
    total: NDArray[np.float64],
    square: NDArray[np.float64],
) -> None:  # pragma: no cover (compiled)
    """Widen the ranges of the columns of `rows`, and add to their sums and sums of squares."""
    for r in range(rows.shape[0]):
        for c in range(rows.shape[1]):
            value = rows[r, c]
            low[c] = value if value < low[c] else low[c]
            high[c] = value if value > high[c] else high[c]
            total[c] += value
            square[c] += np.float64(value) * np.float64(value)
