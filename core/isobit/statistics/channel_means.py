"""ChannelMeans: the mean of each channel of a tensor, reduced where the tensor is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from isobit.statistics.run_sums import RunSums


class ChannelMeans:
    """The mean of each channel; the sums of batches are in float64 (`isobit.statistics.run_sums`).

    A batch with NaN or infinity in it is left out.
    """

    wants: Literal["means"] = "means"

    def __init__(self) -> None:
        self.count = 0  # elements of a channel
        self._sums = RunSums()

    def update(self, batch: NDArray[np.float32], channel_axis: int | None = None) -> None:
        """Add a batch; without a channel axis the whole tensor is one channel."""
        values = np.asarray(batch)
        if channel_axis is None:
            values = values.reshape(1, -1)
        axes = tuple(axis for axis in range(values.ndim) if axis != (channel_axis or 0))
        count = int(np.prod([values.shape[axis] for axis in axes], dtype=np.int64))
        if count:
            self.add_means(values.mean(axis=axes, dtype=np.float64), count)

    def add_means(self, means: NDArray[Any], count: int) -> None:
        """Add a batch by the means of its channels, and how many elements each of them has."""
        if np.all(np.isfinite(means)):
            self._sums.add(np.asarray(means, np.float64) * count)
            self.count += count

    @property
    def settings(self) -> tuple[Any, ...]:
        """What two of them must have alike to add up."""
        return ()

    def blank(self) -> ChannelMeans:
        """One that has seen nothing."""
        return ChannelMeans()

    def merge(self, other: ChannelMeans) -> None:
        """Add the sums of a later part."""
        self._sums.merge(other._sums)
        self.count += other.count

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean of each channel."""
        return np.asarray(self._sums.total / self.count)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything, as arrays."""
        return {"count": np.array([self.count], np.int64), **self._sums.arrays()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> ChannelMeans:
        """The inverse of `arrays`."""
        means = cls()
        means.count = int(arrays["count"][0])
        means._sums = RunSums.from_arrays(arrays)
        return means
