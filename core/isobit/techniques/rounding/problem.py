"""One layer to solve: what is known of it, and what a solution is."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from isobit.encodings.encoding import Encoding
from isobit.encodings.ranges import encode_weight
from isobit.techniques.rounding.behind_activation.activated_error import ActivatedError
from isobit.techniques.rounding.grid import Grid
from isobit.techniques.rounding.layers import Layer
from isobit.techniques.rounding.objective import OutputError
from isobit.techniques.rounding.scale_search import CANDIDATES, search_scale
from isobit.training.kept_zeros import is_sparse

#: Weights of a group whose error is taken at once.
_WEIGHTS = 1 << 19


@dataclass(frozen=True, eq=False)
class Problem:
    """One layer to solve: its float weight, canonical, the error of its output, and that behind its activation.

    The latter is there for a procedure that is `activation_aware`, where one node with a known activation reads.
    """

    layer: Layer
    weight: NDArray[np.float32]
    objective: OutputError
    activated: ActivatedError | None = None

    @property
    def matrix(self) -> NDArray[np.float32]:
        """The weight as (groups, outputs, columns)."""
        return self.layer.patches.matrix(self.weight)

    def outputs(self, some: slice) -> Problem:
        """The problem of some of the outputs, of a layer in one group."""
        patches = self.layer.patches
        weight = self.weight[some]
        part = replace(patches, weight_shape=weight.shape)
        layer = replace(self.layer, readers=dict.fromkeys(self.layer.readers, part))
        return Problem(layer, weight, self.objective.outputs(some))

    def share(self, matrix: NDArray[np.float32]) -> float:
        """The error of a weight as a matrix, as a share of the output's power; behind the activation if known."""
        if self.activated is not None:
            return float(self.activated.error(matrix).sum() / (self.activated.power.sum() or 1.0))
        at_once, error = max(1, _WEIGHTS // matrix.shape[-1]), 0.0
        for start in range(0, matrix.shape[1], at_once):
            some = slice(start, start + at_once)
            error += float(self.objective.error(matrix[:, some], some).sum())
        return error / (float(self.objective.constant.sum()) or 1.0)

    def min_max(self) -> Encoding:
        """The encoding that calibration would choose."""
        placement = self.layer.placement
        return encode_weight(
            self.weight, placement.spec, channel_axis=placement.channel_axis, block_axis=placement.block_axis
        )

    def searched(self, candidates: int = CANDIDATES) -> Encoding:
        """The encoding whose scales make the least error of the layer's output with nearest rounding."""
        return search_scale(self.weight, self.layer.placement, self.layer.patches, self.objective, candidates)

    def grid(self, encoding: Encoding) -> Grid:
        """The grid of an encoding of this weight; the zeros of a sparse one are held."""
        grid = Grid.of(encoding, self.layer.patches)
        return grid.holding(self.matrix == 0) if is_sparse(self.weight) else grid


#: Integers (groups, outputs, columns) and their encoding.
Solution = tuple[NDArray[np.float64], Encoding]
