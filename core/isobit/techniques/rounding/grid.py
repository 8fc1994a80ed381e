"""The grid that a weight is rounded to, spread over the weight as a matrix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isobit.encodings.encoding import Encoding
from isobit.statistics.layer_rows.patches import Patches


@dataclass(frozen=True, eq=False)
class Grid:
    """Scale and zero point of every weight, (groups, outputs, columns), and the lowest and highest integer.

    A weight whose scale is 0 is held at zero: solvers leave its integer at the zero point.
    """

    scale: NDArray[np.float64]
    zero_point: NDArray[np.float64]
    q_min: int
    q_max: int

    @classmethod
    def of(cls, encoding: Encoding, patches: Patches) -> Grid:
        """The grid of a weight's encoding, per tensor, per channel or per block."""
        scale, zero_point = (
            patches.matrix(np.broadcast_to(values, patches.weight_shape)).astype(np.float64, order="C")
            for values in encoding.broadcast(patches.weight_shape)
        )
        return cls(scale, zero_point, encoding.spec.q_min, encoding.spec.q_max)

    def holding(self, zeros: NDArray[np.bool_]) -> Grid:
        """The same with these weights held at zero."""
        return Grid(np.where(zeros, 0.0, self.scale), self.zero_point, self.q_min, self.q_max)

    def part(self, columns: slice) -> Grid:
        """The grid of a part of the columns."""
        scale, zero_point = (np.ascontiguousarray(values[..., columns]) for values in (self.scale, self.zero_point))
        return Grid(scale, zero_point, self.q_min, self.q_max)

    def nearest(self, weight: NDArray[np.floating]) -> NDArray[np.float64]:
        """The nearest integers, as floats."""
        exact = weight.astype(np.float64)
        steps = np.divide(exact, self.scale, out=np.zeros(self.scale.shape), where=self.scale > 0)
        q = np.rint(steps) + self.zero_point
        return np.asarray(np.clip(q, self.q_min, self.q_max))

    def nearest_values(self, weight: NDArray[np.floating]) -> NDArray[np.float64]:
        """The nearest values of the grid."""
        return self.values(self.nearest(weight))

    def values(self, integers: NDArray[np.float64]) -> NDArray[np.float64]:
        """Real values of integers."""
        return np.asarray((integers - self.zero_point) * self.scale)
