"""Counting values into bfloat16 bins: by the numba kernel, on several threads where there is much to count.

Where numba cannot be installed, NumPy counts, about ten times slower: only when the environment variable
``ISOBIT_KERNELS=numpy`` says so. The counts are the same.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isobit.errors import PluginError
from isobit.threads import run_on_threads

VARIABLE = "ISOBIT_KERNELS"
BINS = 1 << 16
ROWS = 1 << 9  # of 128 bins: one sign and exponent each

_CORES = os.cpu_count() or 1
_PART = 1 << 21  # values for each thread; with fewer, starting it and adding its table takes longer than counting


def counted_by_numpy() -> bool:
    """Whether the user chose NumPy. Raises PluginError for a value that is no choice."""
    chosen = os.environ.get(VARIABLE, "numba")
    if chosen not in ("numba", "numpy"):
        raise PluginError(f"{VARIABLE} is {chosen!r}, and must be 'numba' or 'numpy'")
    return chosen == "numpy"


def kernels(module: str = "isobit.statistics.kernels") -> Any:
    """A module of numba kernels, which compile on first use. Raises PluginError where numba is not installed."""
    try:
        return import_module(module)
    except ImportError as error:
        raise PluginError(
            f"isobit counts with numba, which cannot be imported ({error}): pip install numba; "
            f"where that is not possible, set {VARIABLE}=numpy"
        ) from error


def count_bits(bits: NDArray[np.uint32], counts: NDArray[np.int64], rows: NDArray[np.bool_]) -> None:
    """Add float32 values, given by their bit patterns, to the 65,536 `counts` by their top 16 bits.

    `rows` are 512 flags, one a sign and exponent: those of the values are set.
    """
    if counted_by_numpy():
        batch_counts = np.bincount(bits >> 16, minlength=BINS)
        counts += batch_counts
        rows |= batch_counts.reshape(ROWS, -1).any(axis=1)
        return
    count_bins: Callable[..., None] = kernels().count_bins
    parts = min(_CORES, bits.size // _PART)
    if parts < 2:
        count_bins(bits, counts, rows)
        return
    edges = [bits.size * i // parts for i in range(parts + 1)]
    tables, flags = np.zeros((parts, BINS), np.int64), np.zeros((parts, ROWS), np.bool_)
    work = [(bits[a:b], table, flag) for (a, b), table, flag in zip(pairwise(edges), tables, flags, strict=True)]
    run_on_threads(count_bins, work, _CORES)
    counts += tables.sum(axis=0)
    rows |= flags.any(axis=0)


class Scratch(threading.local):
    """A thread's table of counts, all zero between two uses: a fresh one is half a megabyte to clear."""

    def __init__(self) -> None:
        self.counts = np.zeros(BINS, np.int64)
        self.rows = np.zeros(ROWS, np.bool_)

    @contextmanager
    def zeroed_after(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.bool_]]]:
        """The table and its flagged rows, which are cleared in the end, whatever happens."""
        try:
            yield self.counts, self.rows
        finally:
            self.counts.reshape(ROWS, -1)[self.rows] = 0
            self.rows[:] = False
