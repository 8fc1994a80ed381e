"""Which sample of the data sets the range of a tensor alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from isobit.analysis.findings import RangeSetter

#: A range that is so many times as wide as without a sample is that sample's.
_TIMES = 2.0


class SampleBounds:
    """The least and the largest element of each sample."""

    wants: Literal["tensor"] = "tensor"

    def __init__(self) -> None:
        self._low: list[NDArray[np.float32]] = []
        self._high: list[NDArray[np.float32]] = []

    def update(self, batch: NDArray[np.float32], channel_axis: int | None = None) -> None:
        """Add the tensor of one batch; one that holds nothing says nothing."""
        rows = np.asarray(batch, np.float32)
        if not rows.size:
            return
        rows = rows.reshape(rows.shape[0] if rows.ndim else 1, -1)
        self._low.append(rows.min(1))
        self._high.append(rows.max(1))

    def ranges(self, samples: int) -> NDArray[np.float64] | None:
        """(samples, 2): the range of each sample, zero in it; None where axis 0 does not hold the samples."""
        if sum(map(len, self._low)) != samples:
            return None
        low, high = np.concatenate(self._low).astype(np.float64), np.concatenate(self._high).astype(np.float64)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            return None
        return np.stack([np.minimum(low, 0), np.maximum(high, 0)], 1)


def find_range_setters(bounds: Mapping[str, SampleBounds], samples: int) -> tuple[RangeSetter, ...]:
    """Samples without which ranges would be at most half as wide, the one with the most tensors first."""
    found: dict[int, dict[str, float]] = {}
    for name, observer in bounds.items():
        ranges = observer.ranges(samples)
        if ranges is not None:
            for sample, times in _alone(ranges).items():
                found.setdefault(sample, {})[name] = times
    setters = [RangeSetter(sample, tuple(times), max(times.values())) for sample, times in found.items()]
    return tuple(sorted(setters, key=lambda setter: (-len(setter.tensors), setter.sample)))


def _alone(ranges: NDArray[np.float64]) -> Mapping[int, float]:
    """The samples that set a range alone, and how many times as wide it is with them."""
    found = {}
    width = float(ranges[:, 1].max() - ranges[:, 0].min())
    for sample in {int(ranges[:, 0].argmin()), int(ranges[:, 1].argmax())}:
        others = np.delete(ranges, sample, 0)
        rest = float(others[:, 1].max() - others[:, 0].min())
        if rest > 0 and width >= _TIMES * rest:
            found[sample] = width / rest
    return found
