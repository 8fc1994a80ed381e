"""ChannelRanges: how far each channel of a tensor reaches, and how strong it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isobit.errors import DataError

Floats = NDArray[np.float64]


class ChannelRanges:
    """Minimum, maximum and mean square of each channel; without a channel axis the whole tensor is one channel."""

    def __init__(self) -> None:
        self.count = 0
        self.minimum: Floats = np.zeros(0)
        self.maximum: Floats = np.zeros(0)
        self.total_square: Floats = np.zeros(0)

    def update(self, batch: NDArray[np.float32], channel_axis: int | None = None) -> None:
        """Add a batch."""
        values = np.asarray(batch, np.float32)
        if values.size == 0:
            return
        axis = 0 if channel_axis is None else channel_axis % values.ndim
        values = values.reshape(1, -1) if channel_axis is None else values
        others = tuple(i for i in range(values.ndim) if i != axis)
        part = ChannelRanges()
        part.count = values.size // values.shape[axis]
        part.minimum, part.maximum = (found.astype(np.float64) for found in (values.min(others), values.max(others)))
        part.total_square = np.square(values, dtype=np.float64).sum(others)
        self.merge(part)

    def merge(self, other: ChannelRanges) -> None:
        """Add what another part of the data has seen."""
        if not other.count:
            return
        if self.count and self.minimum.shape != other.minimum.shape:
            raise DataError(f"ranges of {self.minimum.size} and {other.minimum.size} channels do not add up")
        first = not self.count
        self.count += other.count
        self.minimum = other.minimum if first else np.minimum(self.minimum, other.minimum)
        self.maximum = other.maximum if first else np.maximum(self.maximum, other.maximum)
        self.total_square = other.total_square if first else self.total_square + other.total_square

    @property
    def largest(self) -> Floats:
        """The largest absolute value of each channel."""
        return np.maximum(self.maximum, -self.minimum)

    @property
    def mean_square(self) -> Floats:
        """The mean of the squares of each channel."""
        return self.total_square / max(self.count, 1)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything, as arrays."""
        found: dict[str, NDArray[Any]] = {"count": np.array([self.count], np.int64), "square": self.total_square}
        return found | {"minimum": self.minimum, "maximum": self.maximum}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> ChannelRanges:
        """The inverse of `arrays`."""
        found = cls()
        found.count, found.total_square = int(arrays["count"][0]), arrays["square"]
        found.minimum, found.maximum = arrays["minimum"], arrays["maximum"]
        return found
