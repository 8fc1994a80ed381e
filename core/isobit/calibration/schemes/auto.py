"""Auto: of several schemes the one that the network's own outputs are best with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from isobit.calibration.scheme import Calibrator
from isobit.calibration.schemes.entropy import Entropy
from isobit.calibration.schemes.minmax import MinMaxRange
from isobit.calibration.schemes.moving_average import MovingAverage
from isobit.calibration.schemes.mse import MeanSquareError
from isobit.calibration.schemes.percentile import Percentile
from isobit.calibration.schemes.reader_error import ReaderError
from isobit.calibration.schemes.sqnr import SignalToNoise
from isobit.encodings.quant_spec import QuantSpec
from isobit.statistics.channel_range import ChannelRange
from isobit.statistics.histogram import Histogram


@runtime_checkable
class ComparesSchemes(Protocol):
    """Optional, asked for by ``isinstance``: a scheme that stands for several, which outputs judge."""

    @property
    def candidates(self) -> Sequence[Calibrator]:
        """The schemes to compare; the first is taken where none is better."""
        ...


@dataclass(frozen=True)
class Auto:
    """The best of `reader-error`, `reader-error=3` and the six other schemes by the outputs of the quantized network.

    Which of them loses least differs from network to network by up to 6 dB, and no error of single tensors tells: large
    values that are cut off may matter much or not at all later on, and errors behind a function that flattens them may
    go into a state that is read again. All of them follow from the same statistics, so the comparison costs a run of a
    few samples for each. Where there are no samples, `reader-error` is taken.
    """

    name = "auto"
    sums_errors: ClassVar[Literal[True]] = True

    @property
    def candidates(self) -> Sequence[Calibrator]:
        """The schemes to compare."""
        return (
            *(ReaderError(), ReaderError(gamma=3.0), Percentile(), MinMaxRange()),
            *(MeanSquareError(), SignalToNoise(), Entropy(), MovingAverage()),
        )

    def range(self, histogram: Histogram, spec: QuantSpec) -> tuple[float, float]:
        """The range of the first candidate."""
        return self.candidates[0].range(histogram, spec)

    def channel_range(self, channels: ChannelRange, spec: QuantSpec) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The range of the first candidate in each channel."""
        return ReaderError().channel_range(channels, spec)

    @classmethod
    def from_text(cls, value: str | None) -> Auto:
        """Auto has no setting."""
        if value is not None:
            raise ValueError("auto takes no setting")
        return cls()
