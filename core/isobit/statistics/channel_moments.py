"""ChannelMoments: range, mean and mean square of each channel of a tensor, reduced where the tensor is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from isobit.statistics.run_sums import RunSums

Floats = NDArray[np.float64]


class ChannelMoments:
    """Range, mean and mean square of each channel of a tensor.

    Sums are in float64 (`isobit.statistics.run_sums`). NaN and infinity are not set aside: `is_finite` tells of them.
    """

    wants: Literal["moments"] = "moments"

    def __init__(self) -> None:
        self.count = 0
        self._low = self._high = np.zeros(0, np.float32)
        self._sums = RunSums()  # (2, channels): of the values and of their squares

    def update(self, batch: NDArray[np.float32], channel_axis: int | None = None) -> None:
        """Add a batch; without a channel axis its channels lie on the last one."""
        from isobit.statistics.kernels import add_columns  # imported here because it compiles on first use

        last = np.moveaxis(batch, -1 if channel_axis is None else channel_axis, -1)
        rows = np.ascontiguousarray(last, np.float32).reshape(-1, last.shape[-1])
        channels = rows.shape[1]
        if not self.count:
            self._low, self._high = np.full(channels, np.inf, np.float32), np.full(channels, -np.inf, np.float32)
        total, square = self._sums.running((2, channels))
        add_columns(rows, self._low, self._high, total, square)
        self._sums.end_batch()
        self.count += len(rows)

    def add_moments(self, moments: NDArray[Any], count: int) -> None:
        """Add a batch by (4, channels) minima, maxima, means and mean squares of so many elements each."""
        low, high = (np.asarray(end, np.float32) for end in moments[:2])
        self._low = np.minimum(self._low, low) if self.count else low
        self._high = np.maximum(self._high, high) if self.count else high
        self._sums.add(np.asarray(moments[2:], np.float64) * count)
        self.count += count

    @property
    def settings(self) -> tuple[Any, ...]:
        """What two of them must have alike to add up."""
        return ()

    def blank(self) -> ChannelMoments:
        """One that has seen nothing."""
        return ChannelMoments()

    def merge(self, other: ChannelMoments) -> None:
        """Add a later part of the data."""
        if not other.count:
            return
        self._sums.merge(other._sums)
        self._low = np.minimum(self._low, other._low) if self.count else other._low
        self._high = np.maximum(self._high, other._high) if self.count else other._high
        self.count += other.count

    @property
    def minimum(self) -> Floats:
        """The least value of each channel."""
        return self._low.astype(np.float64)

    @property
    def maximum(self) -> Floats:
        """The largest value of each channel."""
        return self._high.astype(np.float64)

    @property
    def is_finite(self) -> bool:
        """Whether there is anything, without NaN and infinity."""
        return self.count > 0 and bool(np.all(np.isfinite(self._sums.total[1])))

    @property
    def mean(self) -> Floats:
        """Mean of each channel."""
        return np.asarray(self._sums.total[0] / self.count)

    @property
    def middle(self) -> Floats:
        """The middle of each channel's range."""
        return (self.minimum + self.maximum) / 2

    def largest(self, shift: Floats | float = 0.0) -> Floats:
        """The largest distance of each channel from `shift`, (..., channels)."""
        return np.maximum(self.maximum - shift, shift - self.minimum)

    def mean_square(self, shift: Floats | float = 0.0) -> Floats:
        """Mean squared distance of each channel from `shift`, (..., channels)."""
        square = self._sums.total[1] / self.count - 2 * shift * self.mean + np.square(shift)
        return np.asarray(np.maximum(square, 0.0))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything, as arrays."""
        ranges = {"low": self._low, "high": self._high}
        return {"count": np.array([self.count], np.int64), **ranges, **self._sums.arrays()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> ChannelMoments:
        """The inverse of `arrays`."""
        moments = cls()
        moments.count, moments._sums = int(arrays["count"][0]), RunSums.from_arrays(arrays)
        moments._low, moments._high = np.array(arrays["low"]), np.array(arrays["high"])
        return moments
