"""The numba kernels: counting into bins, errors of grids. Compiled once a machine."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from isobit.statistics.count_bits import BINS

# Declared read-only because JAX's arrays are; numba accepts writable arrays for them too.
_BITS = numba.types.Array(numba.uint32, 1, "C", readonly=True)
_ROWS = numba.types.Array(numba.float32, 2, "C", readonly=True)


@numba.njit(numba.void(_BITS, numba.int64[::1], numba.boolean[::1]), cache=True, nogil=True)
def count_bins(bits: NDArray[np.uint32], counts: NDArray[np.int64], rows: NDArray[np.bool_]) -> None:
    """Add the float32 values whose bit patterns are `bits` to `counts` by their top 16 bits, and flag their `rows`.

    Large inputs use four tables: they break the dependency between neighbours that fall into one bin.
    """
    if bits.size < 4 * BINS:
        for i in range(bits.size):
            counts[bits[i] >> 16] += 1
            rows[bits[i] >> 23] = True
        return
    second = np.zeros(BINS, np.int64)
    third = np.zeros(BINS, np.int64)
    fourth = np.zeros(BINS, np.int64)
    whole = bits.size - bits.size % 4
    for i in range(0, whole, 4):
        counts[bits[i] >> 16] += 1
        second[bits[i + 1] >> 16] += 1
        third[bits[i + 2] >> 16] += 1
        fourth[bits[i + 3] >> 16] += 1
    for i in range(whole, bits.size):
        counts[bits[i] >> 16] += 1
    for b in range(BINS):
        counts[b] += second[b] + third[b] + fourth[b]
        if counts[b]:
            rows[b >> 7] = True


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
