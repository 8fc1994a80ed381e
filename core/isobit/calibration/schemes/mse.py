"""MSE: the range with the smallest mean square error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from isobit.calibration.channel_error import smallest_channel_errors
from isobit.calibration.search import smallest_error
from isobit.encodings.quant_spec import QuantSpec
from isobit.statistics.channel_range import ChannelRange
from isobit.statistics.histogram import Histogram


@dataclass(frozen=True)
class MeanSquareError:
    """The range that loses least to rounding and clipping together, on the very grid that it becomes."""

    name = "mse"
    sums_errors: ClassVar[Literal[True]] = True

    def range(self, histogram: Histogram, spec: QuantSpec) -> tuple[float, float]:
        """The optimal range."""
        return smallest_error(histogram, spec, clip_weight=1.0)

    def channel_range(self, channels: ChannelRange, spec: QuantSpec) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The range of least expected error in each channel."""
        return smallest_channel_errors(channels, spec)

    @classmethod
    def from_text(cls, value: str | None) -> MeanSquareError:
        """MSE has no setting."""
        if value is not None:
            raise ValueError("mse takes no setting")
        return cls()
