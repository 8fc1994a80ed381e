"""Counting values into bfloat16 bins: by the numba kernel, on several threads where there is much to count.

Where numba cannot be installed, NumPy counts, about ten times slower: only when the environment variable
``ISOBIT_KERNELS=numpy`` says so. The counts are the same.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from isobit.errors import PluginError

VARIABLE = "ISOBIT_KERNELS"
BINS = 1 << 16

_PART = 1 << 21  # values; fewer are counted before another thread has woken up and its table is added


def counted_by_numpy() -> bool:
    """Whether the user chose NumPy. Raises PluginError for a choice that is none."""
    chosen = os.environ.get(VARIABLE, "numba")
    if chosen not in ("numba", "numpy"):
        raise PluginError(f"{VARIABLE} is {chosen!r}, and must be 'numba' or 'numpy'")
    return chosen == "numpy"


def count_bits(bits: NDArray[np.uint32], counts: NDArray[np.int64]) -> None:
    """Add float32 values, given by their bit patterns, to the 65,536 `counts` by their top 16 bits."""
    if counted_by_numpy():
        counts += np.bincount(bits >> 16, minlength=BINS)
        return
    try:
        from isobit.kernels import count_bins  # compiles on first use
    except ImportError as error:
        raise PluginError(
            f"isobit counts with numba, which cannot be imported ({error}): pip install numba; "
            f"where that is not possible, set {VARIABLE}=numpy"
        ) from error
    parts = min(os.cpu_count() or 1, bits.size // _PART)
    if parts < 2:
        count_bins(bits, counts)
        return
    edges = [bits.size * i // parts for i in range(parts + 1)]
    tables = np.zeros((parts, BINS), np.int64)
    work = [bits[a:b] for a, b in pairwise(edges)]
    for done in [_pool(os.getpid()).submit(count_bins, *pair) for pair in zip(work, tables, strict=True)]:
        done.result()
    counts += tables.sum(axis=0)


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Threads of this process: a fork has none of its parent's. The kernel runs without the interpreter's lock."""
    return ThreadPoolExecutor(os.cpu_count(), "isobit")
