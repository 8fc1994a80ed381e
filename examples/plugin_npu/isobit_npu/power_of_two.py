"""Scales that are powers of two: the NPU shifts where others multiply."""

from __future__ import annotations

import math
from dataclasses import dataclass

from isobit.encodings import QuantSpec
from isobit.errors import FormatError
from isobit.statistics import Histogram


@dataclass(frozen=True)
class PowerOfTwo:
    """Min-max, widened until the scale of the grid is a power of two. For symmetric grids."""

    name = "power-of-two"

    def range(self, histogram: Histogram, spec: QuantSpec) -> tuple[float, float]:
        """The smallest range of such a scale that holds all that was seen."""
        if not spec.symmetric:
            raise FormatError(f"power-of-two scales are for symmetric grids, not {spec}: set activations='int8'")
        steps = max(histogram.maximum / spec.q_max, histogram.minimum / spec.q_min if spec.q_min else 0.0)
        scale = 2.0 ** math.ceil(math.log2(steps)) if steps > 0 else 1.0
        return spec.q_min * scale, spec.q_max * scale

    @classmethod
    def from_text(cls, value: str | None) -> PowerOfTwo:
        """``power-of-two``, without a setting."""
        if value is not None:
            raise ValueError("it takes no setting")
        return cls()
