"""Fake quantization on the CPU: a numba kernel, compiled once a machine, on as many threads as torch uses."""

from __future__ import annotations

from itertools import pairwise

import numba
import numpy as np
import torch
from numpy.typing import NDArray

from isobit.threads import run_on_threads

#: Smaller tensors are done before another thread has woken up.
_PART = 1 << 16


@numba.njit("void(float32[::1], float32, float32, float32, float32)", cache=True, nogil=True, error_model="numpy")
def fake_quantize_in_place(
    x: NDArray[np.float32], scale: np.float32, zero_point: np.float32, q_min: np.float32, q_max: np.float32
) -> None:
    """Round every value of `x` to a per-tensor grid of at most 16 bits; bit-equal to `isobit.arithmetic`."""
    for i in range(x.size):
        q = np.float32(np.rint(x[i] / scale)) + zero_point
        q = min(max(q, q_min), q_max)
        x[i] = (q - zero_point) * scale


def run_in_parts(flat: NDArray[np.float32], numbers: tuple[np.float32, ...]) -> None:
    """Fake-quantize a flat array in place; `numbers` are the kernel's scale, zero point and bounds.

    Each value is computed alone, so the bits are the same on any number of threads.
    """
    threads = torch.get_num_threads()
    count = min(threads, flat.size // _PART)
    if count < 2:
        fake_quantize_in_place(flat, *numbers)
        return
    edges = [flat.size * i // count for i in range(count + 1)]
    parts = [(flat[start:end], *numbers) for start, end in pairwise(edges)]
    run_on_threads(fake_quantize_in_place, parts, threads)
