"""A normal distribution for each channel: what batch norm knows of its output, and what follows from it.

Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, appendix C.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class NormalPerChannel:
    """Mean and standard deviation of each channel."""

    mean: Floats
    deviation: Floats

    def moved(self, scale: Floats, shift: Floats) -> NormalPerChannel:
        """The distribution of ``x * scale + shift``."""
        return NormalPerChannel(self.mean * scale + shift, self.deviation * np.abs(scale))

    def mean_between(self, low: float, high: float | Floats, slope: float | Floats = 0.0) -> Floats:
        """The mean after ``clip(x, low, high)``; with `slope`, values below `low` = 0 become ``slope * x`` instead."""
        top = np.broadcast_to(np.asarray(high, np.float64), self.mean.shape)
        below, above = self._cumulative(low), 1.0 - self._cumulative(top)
        finite = np.where(np.isfinite(top), top, 0.0)
        inside = self.mean * (1.0 - below - above) + self.deviation * (self._density(low) - self._density(top))
        under = low * below + slope * (self.mean * below - self.deviation * self._density(low))
        return np.asarray(inside + under + finite * above, np.float64)

    def _standard(self, value: float | Floats) -> Floats:
        deviation = np.maximum(self.deviation, 1e-30)
        return np.asarray((value - self.mean) / deviation, np.float64)

    def _cumulative(self, value: float | Floats) -> Floats:
        return np.array([0.5 * math.erfc(-z / math.sqrt(2.0)) for z in self._standard(value).tolist()])

    def _density(self, value: float | Floats) -> Floats:
        z = np.clip(self._standard(value), -60.0, 60.0)  # its square must not overflow
        return np.asarray(np.exp(-0.5 * np.square(z)) / math.sqrt(2.0 * math.pi), np.float64)
