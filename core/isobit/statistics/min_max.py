"""The bounds of each batch, in order."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray


class MinMax:
    """The minimum and maximum of each of the last 4,096 batches, in order: what a moving average needs."""

    wants: Literal["bounds"] = "bounds"
    WINDOW = 4096

    def __init__(self) -> None:
        self._bounds = array("d")

    def update(self, batch: NDArray[np.float32], channel_axis: int | None = None) -> None:
        """Add a batch."""
        if batch.size:
            self.add(float(np.min(batch)), float(np.max(batch)))

    def add(self, minimum: float, maximum: float) -> None:
        """Add a batch by its bounds."""
        self._bounds.extend((minimum, maximum))
        if len(self._bounds) >= 4 * self.WINDOW:
            self._forget()

    @property
    def settings(self) -> tuple[Any, ...]:
        """What two of them must have alike to add up."""
        return ()

    def blank(self) -> MinMax:
        """One that has seen nothing."""
        return MinMax()

    def merge(self, other: MinMax) -> None:
        """Append the batches of a later part."""
        self._bounds += other._bounds
        self._forget()

    def join(self, other: MinMax) -> None:
        """Take the bounds of both: of another tensor in the same batches."""
        own, added = self.bounds(), other.bounds()
        shared = min(len(own), len(added))
        longer = own if len(own) > shared else added
        last_bounds = np.stack([own[len(own) - shared :], added[len(added) - shared :]])
        ends = np.stack([last_bounds[..., 0].min(axis=0), last_bounds[..., 1].max(axis=0)], axis=1)
        self._bounds = array("d", np.concatenate([longer[: len(longer) - shared], ends]).tobytes())

    def _forget(self) -> None:
        del self._bounds[: max(0, len(self._bounds) - 2 * self.WINDOW)]

    @property
    def batches(self) -> list[tuple[float, float]]:
        """Minimum and maximum of each batch."""
        return [(low, high) for low, high in self.bounds().tolist()]

    def bounds(self) -> NDArray[np.float64]:
        """The same as an array of shape (batches, 2)."""
        return np.array(self._bounds, np.float64).reshape(-1, 2)[-self.WINDOW :]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything, as arrays."""
        return {"batches": self.bounds()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> MinMax:
        """The inverse of `arrays`."""
        loaded = cls()
        loaded._bounds = array("d", np.asarray(arrays["batches"], np.float64).reshape(-1, 2).tobytes())
        return loaded
