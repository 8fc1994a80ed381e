"""Min-max: the range of everything that was seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isobit.encodings.quant_spec import QuantSpec
from isobit.statistics.channel_range import ChannelRange
from isobit.statistics.histogram import Histogram


@dataclass(frozen=True)
class MinMaxRange:
    """The exact minimum and maximum over all elements of all batches."""

    name = "minmax"

    def range(self, histogram: Histogram, spec: QuantSpec) -> tuple[float, float]:
        """Minimum and maximum."""
        return histogram.minimum, histogram.maximum

    def channel_range(self, channels: ChannelRange, spec: QuantSpec) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Minimum and maximum of each channel."""
        return channels.minimum, channels.maximum

    @classmethod
    def from_text(cls, value: str | None) -> MinMaxRange:
        """Min-max has no setting."""
        if value is not None:
            raise ValueError("min-max takes no setting")
        return cls()
