"""Moments: mean and variance of each channel of a tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from isobit.statistics.run_sums import RunSums


class Moments:
    """Mean and mean square of each channel, in float64 (`isobit.statistics.run_sums`)."""

    wants: Literal["tensor"] = "tensor"

    def __init__(self) -> None:
        self.count = 0
        self._sums = RunSums()  # (2, channels): of the values and of their squares

    def update(self, batch: NDArray[np.float32], channel_axis: int | None = None) -> None:
        """Add a batch; without a channel axis the whole tensor is one channel."""
        values = np.asarray(batch, np.float64)
        if channel_axis is None:
            values = values.reshape(1, -1)
        else:
            values = np.moveaxis(values, channel_axis, 0).reshape(values.shape[channel_axis], -1)
        self._sums.add(np.stack([values.sum(axis=1), np.square(values).sum(axis=1)]))
        self.count += values.shape[1]

    @property
    def settings(self) -> tuple[Any, ...]:
        """What two of them must have alike to add up."""
        return ()

    def blank(self) -> Moments:
        """One that has seen nothing."""
        return Moments()

    def merge(self, other: Moments) -> None:
        """Add the sums of a later part."""
        self._sums.merge(other._sums)
        self.count += other.count

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean of each channel."""
        return np.asarray(self._sums.total[0] / self.count)

    @property
    def variance(self) -> NDArray[np.float64]:
        """Population variance of each channel."""
        return np.asarray(np.maximum(self._sums.total[1] / self.count - np.square(self.mean), 0.0))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything, as arrays."""
        return {"count": np.array([self.count], np.int64), **self._sums.arrays()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Moments:
        """The inverse of `arrays`."""
        moments = cls()
        moments.count, moments._sums = int(arrays["count"][0]), RunSums.from_arrays(arrays)
        return moments
