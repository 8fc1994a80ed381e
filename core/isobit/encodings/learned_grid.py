"""LearnedGrid: how training moves one grid. The arithmetic that every backend follows, and its reference in NumPy.

A scale is ``start * exp(unit * log_scale)``, with `log_scale` 0 at the start and the exponent cut to plus and minus
`LOG_BOUND`: it stays positive and finite, and an optimizer's step is relative to the scale. A zero point is ``start +
levels * offset``, rounded and cut to the grid, so that 0 stays representable and the ends of the range never cross.
Rounding and cutting let gradients through, but for those that would carry a parameter further beyond its bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isobit import arithmetic
from isobit.encodings.encoding import Encoding

#: A scale is learned up to 64 times its start and down to a 64th.
LOG_BOUND = float(np.log(64))


@dataclass(frozen=True, eq=False)
class LearnedGrid:
    """What one parameter of a grid is worth, and what moves it.

    `factor`: the gradient by `log_scale` is that by the scale, times the scale, times this; that by `offset` is that by
    the zero point, times the levels, times this. Of the shape of the scale, float32.
    `unit`: how much of the scale's logarithm a `log_scale` of 1 is. An optimizer whose steps have a fixed length moves
    the ends of the range of many levels by as small a part of a level as those of few.
    `rounding`: whether the error of rounding moves the scale (LSQ), or only what the grid cuts off (PACT).
    `zero_point_levels`: the levels that an `offset` of 1 is; 0 where the zero point stays.
    """

    factor: NDArray[np.float32]
    unit: float = 1.0
    rounding: bool = True
    zero_point_levels: int = 0

    def to_record(self) -> dict[str, Any]:
        """As JSON data."""
        factor = np.asarray(self.factor)
        return {
            "factor": factor.tolist(),
            "unit": self.unit,
            "rounding": self.rounding,
            "zero_point_levels": self.zero_point_levels,
        }

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> LearnedGrid:
        """The inverse of `to_record`."""
        return cls(
            np.asarray(record["factor"], np.float32), *(record[n] for n in ("unit", "rounding", "zero_point_levels"))
        )


def learned_encoding(start: Encoding, grid: LearnedGrid, log_scale: ArrayLike, offset: ArrayLike = 0) -> Encoding:
    """The encoding that the parameters stand for."""
    grown = np.exp(np.clip(np.float32(grid.unit) * np.asarray(log_scale, np.float32), -LOG_BOUND, LOG_BOUND))
    scale = np.maximum(start.scale * grown, np.float32(arithmetic.SMALLEST_SCALE))
    moved = start.zero_point + grid.zero_point_levels * np.asarray(offset, np.float32)
    zero = np.clip(np.rint(moved), start.spec.q_min, start.spec.q_max).astype(np.int32)
    return Encoding(start.spec, scale.astype(np.float32), zero, start.axis)


def gradients(
    x: ArrayLike, upstream: ArrayLike, encoding: Encoding, *, rounding: bool = True
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Gradients of fake quantization by `x`, and by scale and zero point before they are summed over what shares them.

    Sources: Esser et al. 2020, "Learned Step Size Quantization", eq. 3; Bhalgat et al. 2020, "LSQ+", eq. 6 to 8; Choi
    et al. 2018, "PACT", eq. 3 (`rounding` False).
    """
    values, upstream64 = np.asarray(x, np.float64), np.asarray(upstream, np.float64)
    scale, zero = (np.asarray(part, np.float64) for part in encoding.broadcast(values.shape))
    position = np.rint(np.asarray(x, np.float32) / np.asarray(scale, np.float32)) + zero
    inside = (position >= encoding.spec.q_min) & (position <= encoding.spec.q_max)
    level = np.clip(position, encoding.spec.q_min, encoding.spec.q_max) - zero
    within = level - values / scale if rounding else 0.0
    by_scale = upstream64 * np.where(inside, within, level)
    return upstream64 * inside, by_scale, np.where(inside, 0.0, -scale * upstream64)
