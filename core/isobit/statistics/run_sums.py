"""Sums over batches that come out the same whether the data was gone through at once or in parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isobit.errors import DataError

Floats = NDArray[np.float64]


class RunSums:
    """Float64 sums over runs of 8 batches, and the sums of the runs added in order.

    Addition of floats depends on its order. Parts of the data that end where a run ends merge to the bits of the whole.
    """

    RUN = 8

    def __init__(self) -> None:
        self._closed: Floats = np.zeros(0)
        self._open: Floats = np.zeros(0)
        self._open_batches = 0

    def running(self, shape: tuple[int, ...]) -> Floats:
        """The sums of the run that is open, to be added to in place; `end_batch` says that a batch is in."""
        self._check(shape)
        if not self._open.size:
            self._open = np.zeros(shape)
        return self._open

    def end_batch(self) -> None:
        """Count a batch; after the eighth the run ends."""
        self._open_batches += 1
        if self._open_batches == self.RUN:
            self._close()

    def add(self, sums: Floats) -> None:
        """Add the sums of one batch."""
        self.running(sums.shape)[...] += sums
        self.end_batch()

    def merge(self, other: RunSums) -> None:
        """Add a later part of the data."""
        if not other._open.size and not other._closed.size:
            return
        self._check(other.total.shape)
        self._close()
        self._open, self._open_batches = other._closed, 0
        self._close()
        self._open, self._open_batches = other._open.copy(), other._open_batches

    def _check(self, shape: tuple[int, ...]) -> None:
        if self.total.size and self.total.shape != shape:
            raise DataError(f"sums of {self.total.shape[-1]} and {shape[-1]} channels do not add up")

    def _close(self) -> None:
        if self._open.size:
            self._closed = self._closed + self._open if self._closed.size else self._open
        self._open, self._open_batches = np.zeros(0), 0

    @property
    def total(self) -> Floats:
        """The sums over everything."""
        if not self._closed.size or not self._open.size:
            return self._closed if self._closed.size else self._open
        return self._closed + self._open

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything, as arrays."""
        return {"closed": self._closed, "open": self._open, "open_batches": np.array([self._open_batches], np.int64)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> RunSums:
        """The inverse of `arrays`."""
        sums = cls()
        sums._closed, sums._open = arrays["closed"], np.array(arrays["open"])
        sums._open_batches = int(arrays["open_batches"][0])
        closed, open_ = sums._closed, sums._open
        if (closed.size and open_.size and closed.shape != open_.shape) or not 0 <= sums._open_batches < cls.RUN:
            raise DataError(f"sums of shapes {closed.shape} and {open_.shape} that do not add up")
        return sums
