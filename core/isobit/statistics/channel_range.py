"""What is kept of an activation with one scale a channel: a histogram each would be too much."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from isobit.errors import DataError
from isobit.statistics.run_sums import RunSums


class ChannelRange:
    """Minimum, maximum and mean square of each channel, and how many values were not finite.

    Squares are summed in float64 (`isobit.statistics.run_sums`).
    """

    wants: Literal["tensor"] = "tensor"

    def __init__(self) -> None:
        self.minimum: NDArray[np.float64] = np.zeros(0)
        self.maximum: NDArray[np.float64] = np.zeros(0)
        self.count = 0  # finite values of the channel that has the fewest
        self.non_finite = 0
        self._squares = RunSums()

    def update(self, batch: NDArray[np.float32], channel_axis: int | None = None) -> None:
        """Add a batch; a tensor without a channel axis has one channel."""
        values = np.asarray(batch, np.float32)
        if not values.size:
            return
        channels = 1 if channel_axis is None else values.shape[channel_axis]
        rows = np.moveaxis(values, channel_axis or 0, 0).reshape(channels, -1).astype(np.float64)
        finite = np.isfinite(rows)
        self.non_finite += int(rows.size - np.count_nonzero(finite))
        low, high = np.where(finite, rows, np.inf).min(axis=1), np.where(finite, rows, -np.inf).max(axis=1)
        squares = np.square(np.where(finite, rows, 0.0)).sum(axis=1)
        self._extend(low, high)
        self.count += int(finite.sum(axis=1).min())
        self._squares.add(squares)

    def _extend(self, low: NDArray[np.float64], high: NDArray[np.float64]) -> None:
        if not self.minimum.size:
            self.minimum, self.maximum = low + 0.0, high + 0.0  # 0.0 makes -0.0 the same zero
            return
        if low.size != self.minimum.size:
            raise DataError(f"ranges of {self.minimum.size} and {low.size} channels do not add up")
        self.minimum, self.maximum = np.minimum(self.minimum, low) + 0.0, np.maximum(self.maximum, high) + 0.0

    @property
    def settings(self) -> tuple[Any, ...]:
        """What two of them must have alike to add up."""
        return ()

    def blank(self) -> ChannelRange:
        """One that has seen nothing."""
        return ChannelRange()

    def merge(self, other: ChannelRange) -> None:
        """Add a later part of the data."""
        if not other.minimum.size:
            return
        self._extend(other.minimum, other.maximum)
        self.count += other.count
        self.non_finite += other.non_finite
        self._squares.merge(other._squares)

    @property
    def is_empty(self) -> bool:
        """Whether no finite value was seen."""
        return not self.count

    @property
    def largest(self) -> NDArray[np.float64]:
        """The largest absolute value of each channel."""
        return np.maximum(self.maximum, -self.minimum)

    @property
    def mean_square(self) -> NDArray[np.float64]:
        """Mean square of each channel."""
        return np.asarray(self._squares.total / max(self.count, 1), np.float64)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything, as arrays."""
        return {
            "minimum": self.minimum,
            "maximum": self.maximum,
            "totals": np.array([self.count, self.non_finite], np.int64),
            **self._squares.arrays(),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> ChannelRange:
        """The inverse of `arrays`."""
        ranges = cls()
        ranges.minimum, ranges.maximum = arrays["minimum"], arrays["maximum"]
        ranges.count, ranges.non_finite = (int(v) for v in arrays["totals"])
        ranges._squares = RunSums.from_arrays(arrays)
        return ranges
