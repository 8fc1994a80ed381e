"""From the rows that were seen of a layer's input to the error of its output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from isobit.encodings.quant_spec import Lpbq, PerBlock
from isobit.statistics.layer_rows.gram import Gram
from isobit.statistics.layer_rows.rows import Rows, paired_values
from isobit.techniques.rounding.curvature import Curvature
from isobit.techniques.rounding.damping import DAMPINGS, trusted_damping
from isobit.techniques.rounding.layers import Layer
from isobit.techniques.rounding.objective import Objective, OutputError
from isobit.techniques.rounding.reconstruction import half_grams, reconstruction
from isobit.techniques.rounding.row_objective import RowObjective

#: Layers with more weights a channel are solved from their rows, part after part, and not from second moments of all.
LARGE = 2048


@dataclass(eq=False)
class SeenInput:
    """The rows that all readers of a weight saw: of the quantized model, and of the float model where told apart.

    What follows from them is worked out once, for all layers of one input. `centered` where biases take up means.
    """

    seen: Sequence[tuple[Rows, Rows | None]]
    centered: bool
    _shapes: dict[float, Curvature] = field(default_factory=dict)
    _damping: float | None = None

    @cached_property
    def _halves(self) -> list[list[Gram]]:
        return [half_grams(*pair) for pair in self.seen]

    @cached_property
    def gram(self) -> Gram:
        """The sums over the rows of all readers."""
        pairs = zip(self._halves, self.seen, strict=True)
        grams = [Gram.sum(halves) if halves else Gram.of(*pair) for halves, pair in pairs]
        return Gram.sum([gram.centered() if self.centered else gram for gram in grams])

    @cached_property
    def halves(self) -> list[Gram]:
        """The sums over samples of even and of odd number; none where a reader has no rows in one of the two."""
        if not all(self._halves):
            return []
        both = zip(*self._halves, strict=True)
        return [Gram.sum([gram.centered() if self.centered else gram for gram in half]) for half in both]

    def shape(self, damping: float) -> Curvature:
        """The curvature of the error of layers that read it."""
        if damping not in self._shapes:
            self._shapes[damping] = Curvature.of(self.gram, damping)
        return self._shapes[damping]

    def damping(self, layer: Layer, weight: NDArray[np.float32]) -> float:
        """How far its rows can be trusted, by the first layer that asks."""
        if self._damping is None:
            self._damping = trusted_damping(layer, weight, self.halves)
        return self._damping


def output_error(
    layer: Layer, weight: NDArray[np.float32], inputs: SeenInput, damping: float | None = None
) -> OutputError:
    """The error of replacing `weight` (groups, outputs, columns), over the rows of all readers of it.

    A `damping` of None is found by what rounding for one half of the data does on the other. Raises DataError as
    `isobit.statistics.Gram.of`.
    """
    if layer.patches.columns <= LARGE:
        total = inputs.gram
        chosen = inputs.damping(layer, weight) if damping is None else damping
        shape = inputs.shape(chosen)
        if total.has_reference:
            return reconstruction(weight, total, inputs.halves, shape, chosen)
        return Objective.of(weight, total, chosen, shape)
    granularity = layer.placement.spec.granularity
    blocks = 1
    if isinstance(granularity, PerBlock | Lpbq):  # a block of a convolution holds all taps of its channels
        blocks = granularity.size * int(np.prod(layer.patches.kernel, dtype=np.int64))
    rows = [paired_values(*pair)[0] for pair in inputs.seen]
    chosen = DAMPINGS[-1] if damping is None else damping  # there are always few rows for so many columns
    return RowObjective.of(weight, rows, centered=inputs.centered, damping=chosen, multiple=blocks)


def mean_output(matrix: NDArray[np.float32], rows: Rows) -> NDArray[np.float64]:
    """The mean output of each channel over these rows."""
    mean = rows.values.mean(axis=0, dtype=np.float64)
    return np.asarray(np.einsum("goc,gc->go", matrix.astype(np.float64), mean).reshape(-1))
