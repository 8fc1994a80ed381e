"""SQNR: the smallest square error with a penalty on clipping, in meaning AIMET's "tf_enhanced"."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from isobit.calibration.search import smallest_error
from isobit.encodings.quant_spec import QuantSpec
from isobit.errors import FormatError
from isobit.statistics.histogram import Histogram


@dataclass(frozen=True)
class SignalToNoise:
    """The range with the best signal to quantization noise ratio, where noise from clipping weighs `gamma` times.

    The default 3 is that of AIMET's post-training scheme "tf_enhanced"; 1 is `mse`.
    """

    gamma: float = 3.0
    name = "sqnr"
    sums_errors: ClassVar[Literal[True]] = True

    def __post_init__(self) -> None:
        if not 0 < self.gamma < math.inf:
            raise FormatError(f"the weight of clipping is a positive number, not {self.gamma}")

    def range(self, histogram: Histogram, spec: QuantSpec) -> tuple[float, float]:
        """The best range."""
        return smallest_error(histogram, spec, clip_weight=self.gamma)

    @classmethod
    def from_text(cls, value: str | None) -> SignalToNoise:
        """``sqnr=3``."""
        return cls() if value is None else cls(float(value))
