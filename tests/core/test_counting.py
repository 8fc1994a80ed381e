"""Counting by numba, on threads and by NumPy is one counting."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from isobit.errors import PluginError
from isobit.statistics import Histogram
from isobit.statistics.bin_counts import BinCounts
from isobit.statistics.count_bits import BINS, ROWS, VARIABLE, count_bits


@pytest.mark.parametrize("size", [0, 7, 70_000, 300_000])
def test_numpy_counts_what_numba_counts(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, size, np.uint32)
    counts, rows = np.ones((2, BINS), np.int64), np.zeros((2, ROWS), np.bool_)
    count_bits(bits, counts[0], rows[0])
    monkeypatch.setenv(VARIABLE, "numpy")
    count_bits(bits, counts[1], rows[1])
    np.testing.assert_array_equal(counts[0], counts[1])
    np.testing.assert_array_equal(rows, [(counts[0] > 1).reshape(ROWS, -1).any(axis=1)] * 2)
    assert counts[0].sum() == size + BINS


def test_threads_count_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    bits = np.random.default_rng(1).standard_normal(50_003).astype(np.float32).view(np.uint32)
    (whole, parts), rows = np.zeros((2, BINS), np.int64), np.zeros((2, ROWS), np.bool_)
    count_bits(bits, whole, rows[0])
    monkeypatch.setattr("isobit.statistics.count_bits._PART", 9000)
    monkeypatch.setattr("isobit.statistics.count_bits._CORES", 3)
    count_bits(bits, parts, rows[1])
    np.testing.assert_array_equal(whole, parts)
    np.testing.assert_array_equal(rows[0], rows[1])


def test_the_table_of_a_thread_is_clear_again_after_an_interruption(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.arange(1, 9, dtype=np.float32).reshape(2, 4)

    def interrupted(self: BinCounts, counts: object, rows: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(BinCounts, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            Histogram().update(values)
    histogram = Histogram()
    histogram.update(values)
    assert histogram.counted == 8


def test_without_numba_the_choice_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "isobit.statistics.kernels", None)
    with pytest.raises(PluginError, match="pip install numba; where that is not possible, set ISOBIT_KERNELS=numpy"):
        Histogram().update(np.ones((1, 3), np.float32))
    monkeypatch.setenv(VARIABLE, "numpy")
    histogram = Histogram()
    histogram.update(np.ones((1, 3), np.float32))
    assert histogram.counted == 3
    monkeypatch.setenv(VARIABLE, "cupy")
    with pytest.raises(PluginError, match="ISOBIT_KERNELS is 'cupy', and must be 'numba' or 'numpy'"):
        histogram.update(np.ones((1, 3), np.float32))
