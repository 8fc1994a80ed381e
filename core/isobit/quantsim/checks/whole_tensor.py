"""An observer that keeps one tensor of one batch."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray


class WholeTensor:
    """Keeps the last batch of a tensor; `values` is None where nothing came."""

    wants: Literal["tensor"] = "tensor"

    def __init__(self) -> None:
        self.values: NDArray[np.float32] | None = None

    def update(self, batch: NDArray[np.float32], channel_axis: int | None = None) -> None:
        """Keep a copy: the backend may use the memory again."""
        self.values = np.array(batch)
