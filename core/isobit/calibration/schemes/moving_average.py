"""Moving average: the exponential moving averages of each batch's minimum and maximum."""

from __future__ import annotations

from dataclasses import dataclass

from isobit.encodings.quant_spec import QuantSpec
from isobit.errors import FormatError
from isobit.statistics.histogram import Histogram

LEAST = 0.01


@dataclass(frozen=True)
class MovingAverage:
    """The range ``r += constant * (batch - r)``, from the first batch's range on, in the order of the batches.

    It depends on how the data is cut into batches and on their order, unlike every other scheme. The constant is at
    least 0.01, the default of PyTorch's MovingAverageMinMaxObserver: statistics keep the last 4,096 batches, and what
    lies before them would have a weight of 0.99**4096, less than float64 resolves.
    """

    constant: float = LEAST
    name = "moving-average"

    def __post_init__(self) -> None:
        if not LEAST <= self.constant <= 1:
            raise FormatError(f"the averaging constant lies from {LEAST} to 1, not {self.constant}")

    def range(self, histogram: Histogram, spec: QuantSpec) -> tuple[float, float]:
        """The two averages after the last batch."""
        bounds = histogram.batch_bounds.bounds()
        if not len(bounds):
            return histogram.minimum, histogram.maximum
        low, high = bounds[0].tolist()
        for batch_low, batch_high in bounds[1:].tolist():
            low += self.constant * (batch_low - low)
            high += self.constant * (batch_high - high)
        return low, high

    @classmethod
    def from_text(cls, value: str | None) -> MovingAverage:
        """``moving-average=0.1``."""
        return cls() if value is None else cls(float(value))
