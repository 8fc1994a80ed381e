"""The numba kernels: counting into bfloat16 bins, and fake-quantize in place. Compiled once a machine and cached."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

BINS = 1 << 16


# Read only: JAX hands out such arrays, and a writable one fits here too.
_BITS = numba.types.Array(numba.uint32, 1, "C", readonly=True)


@numba.njit(numba.void(_BITS, numba.int64[::1]), cache=True, nogil=True)
def count_bins(bits: NDArray[np.uint32], counts: NDArray[np.int64]) -> None:
    """Add the float32 values whose bit patterns are `bits` to `counts` by their top 16 bits.

    Large inputs use four tables: they break the dependency between neighbours that fall into one bin.
    """
    if bits.size < 4 * BINS:
        for i in range(bits.size):
            counts[bits[i] >> 16] += 1
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


@numba.njit("void(float32[::1], float32, float32, float32, float32)", cache=True, nogil=True, error_model="numpy")
def fake_quantize_in_place(
    x: NDArray[np.float32], scale: np.float32, zero_point: np.float32, q_min: np.float32, q_max: np.float32
) -> None:
    """Round every value of `x` to a per-tensor grid of at most 16 bits; bit-equal to `arithmetic.fake_quantize`."""
    for i in range(x.size):
        q = np.float32(np.rint(x[i] / scale)) + zero_point
        q = min(max(q, q_min), q_max)
        x[i] = (q - zero_point) * scale
