"""An observer that keeps everything: for tests alone, where a backend's tensors are looked at."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray


class Collect:
    """Keeps every batch of a tensor, in order."""

    wants: Literal["tensor"] = "tensor"

    def __init__(self) -> None:
        self.batches: list[NDArray[np.float32]] = []
        self.channel_axes: list[int | None] = []

    def update(self, batch: NDArray[np.float32], channel_axis: int | None = None) -> None:
        """Keep a copy of the batch."""
        self.batches.append(np.array(batch, np.float32))
        self.channel_axes.append(channel_axis)

    @property
    def values(self) -> NDArray[np.float32]:
        """All batches, one after the other."""
        return np.concatenate(self.batches)
