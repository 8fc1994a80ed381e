"""From the rows that were seen of a layer's input to the error of its output."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from isobit.encodings.quant_spec import Lpbq, PerBlock
from isobit.statistics.layer_rows.gram import Gram
from isobit.statistics.layer_rows.rows import Rows, paired_values
from isobit.techniques.rounding.damping import DAMPINGS, trusted_damping
from isobit.techniques.rounding.layers import Layer
from isobit.techniques.rounding.objective import Objective, OutputError
from isobit.techniques.rounding.reconstruction import half_grams, reconstruction
from isobit.techniques.rounding.row_objective import RowObjective

#: Layers with more weights a channel are solved from their rows, part after part, and not from second moments of all.
LARGE = 2048


def output_error(
    layer: Layer,
    weight: NDArray[np.float32],
    seen: Sequence[tuple[Rows, Rows | None]],
    damping: float | None = None,
    *,
    centered: bool,
) -> OutputError:
    """The error of replacing `weight` (groups, outputs, columns), over the rows of all readers of it.

    `seen` are rows of the quantized model and of the float model, where they are told apart. A `damping` of None is
    found by what rounding for one half of the data does on the other. Raises DataError as `isobit.statistics.Gram.of`.
    """
    if layer.patches.columns <= LARGE:
        halves = [half_grams(*pair) for pair in seen]
        grams = [Gram.sum(h) if h else Gram.of(*pair) for h, pair in zip(halves, seen, strict=True)]
        total = Gram.sum([gram.centered() if centered else gram for gram in grams])
        apart = _apart(halves, centered=centered)
        chosen = trusted_damping(layer, weight, apart) if damping is None else damping
        if total.has_reference:
            return reconstruction(weight, total, apart, chosen)
        return Objective.of(weight, total, chosen)
    granularity = layer.placement.spec.granularity
    blocks = 1
    if isinstance(granularity, PerBlock | Lpbq):  # a block of a convolution holds all taps of its channels
        blocks = granularity.size * int(np.prod(layer.patches.kernel, dtype=np.int64))
    rows = [paired_values(*pair)[0] for pair in seen]
    chosen = DAMPINGS[-1] if damping is None else damping  # there are always few rows for so many columns
    return RowObjective.of(weight, rows, centered=centered, damping=chosen, multiple=blocks)


def _apart(halves: Sequence[list[Gram]], *, centered: bool) -> list[Gram]:
    """The sums of both halves over all readers; none where a reader has no rows in one of them."""
    if not all(halves):
        return []
    return [Gram.sum([half[n].centered() if centered else half[n] for half in halves]) for n in range(2)]
