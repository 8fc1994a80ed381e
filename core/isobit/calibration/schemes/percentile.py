"""Percentile: the range without the rarest values of both tails."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isobit.calibration.error import Bins
from isobit.encodings.quant_spec import QuantSpec
from isobit.errors import FormatError
from isobit.statistics.histogram import Histogram


@dataclass(frozen=True)
class Percentile:
    """The range from the ``100 - percentile`` to the `percentile` quantile: that share is cut from *each* tail.

    Values are taken as evenly spread within their bin, which is at most 1/128 of their magnitude wide.
    100 is min-max.
    """

    percentile: float = 99.99
    name = "percentile"

    def __post_init__(self) -> None:
        if not 50 < self.percentile <= 100:
            raise FormatError(f"a percentile lies above 50 and up to 100, not {self.percentile}")

    def range(self, histogram: Histogram, spec: QuantSpec) -> tuple[float, float]:
        """The two quantiles."""
        if self.percentile == 100:
            return histogram.minimum, histogram.maximum
        low, high, counts = Bins.of(histogram)
        tail = (100 - self.percentile) / 100 * float(counts.sum())
        return quantile(low, high, counts, tail), -quantile(-high[::-1], -low[::-1], counts[::-1], tail)

    @classmethod
    def from_text(cls, value: str | None) -> Percentile:
        """``percentile=99.9``."""
        return cls() if value is None else cls(float(value))


def quantile(
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    counts: NDArray[np.float64],
    rank: float,
) -> float:
    """The value that `rank` elements lie below, for sorted bins [low, high] holding `counts` elements."""
    cumulative = np.cumsum(counts)
    bin_index = min(int(np.searchsorted(cumulative, rank, side="right")), len(counts) - 1)
    inside = (rank - (cumulative[bin_index] - counts[bin_index])) / counts[bin_index]
    return float(low[bin_index] + inside * (high[bin_index] - low[bin_index]))
