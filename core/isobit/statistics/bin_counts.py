"""BinCounts: counts of float32 values by their top 16 bits, of the signs and exponents that occur."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from isobit.statistics.count_bits import BINS, ROWS

_ROW = BINS // ROWS  # bins of one sign and exponent: 7 mantissa bits
_NON_FINITE = [ROWS // 2 - 1, ROWS - 1]  # the exponent of infinity and NaN, of either sign


class BinCounts:
    """Counts in 512 rows of 128 bins, of which only those that occur are stored: about 30 for a usual tensor."""

    def __init__(self) -> None:
        self._place = np.full(ROWS, -1, np.int64)  # by row (sign and exponent), its index in `_table`, or -1
        self._table = np.zeros((0, _ROW), np.int64)

    @classmethod
    def of(cls, keys: NDArray[np.uint16], counts: NDArray[np.int64]) -> BinCounts:
        """From the keys of bins, each once, and their counts."""
        table = np.zeros(BINS, np.int64)
        table[keys] = counts
        bin_counts = cls()
        bin_counts.add_table(table)
        return bin_counts

    def add_table(self, counts: NDArray[np.int64]) -> int:
        """`add` of 65,536 counts, whose rows are looked for."""
        return self.add(counts, np.asarray(counts.reshape(ROWS, _ROW).any(axis=1)))

    def add(self, counts: NDArray[np.int64], rows: NDArray[np.bool_]) -> int:
        """Add the `rows` (512 flags) of 65,536 counts; returns how many are of infinity and NaN, which have no bin."""
        table, non_finite = counts.reshape(ROWS, _ROW), 0
        if rows[_NON_FINITE].any():
            rows, non_finite = rows.copy(), int(table[_NON_FINITE].sum())
            rows[_NON_FINITE] = False
        occupied = np.flatnonzero(rows)
        self._add_rows(occupied, table[occupied])
        return non_finite

    def repeated(self, times: int) -> BinCounts:
        """Each count so many times."""
        result = type(self)()
        result._place, result._table = self._place.copy(), self._table * times
        return result

    def merge(self, other: BinCounts) -> None:
        """Add the counts of another."""
        rows = np.flatnonzero(other._place >= 0)
        self._add_rows(rows, other._table[other._place[rows]])

    def _add_rows(self, rows: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
        new = rows[self._place[rows] < 0]
        if new.size:
            self._place[new] = len(self._table) + np.arange(new.size)
            self._table = np.concatenate([self._table, np.zeros((new.size, _ROW), np.int64)])
        self._table[self._place[rows]] += counts

    @property
    def total(self) -> int:
        """How many values were counted."""
        return int(self._table.sum())

    def by_key(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Keys (top 16 bits) and counts of the non-empty bins, by rising key."""
        rows = np.flatnonzero(self._place >= 0)
        table = self._table[self._place[rows]]
        row, column = np.nonzero(table)
        return rows[row] * _ROW + column, table[row, column]

    def by_value(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The same by rising value: the keys of negative numbers rise with their magnitude."""
        keys, counts = self.by_key()
        positive = int(np.searchsorted(keys, BINS // 2))
        return tuple(np.concatenate([part[positive:][::-1], part[:positive]]) for part in (keys, counts))  # type: ignore[return-value]
