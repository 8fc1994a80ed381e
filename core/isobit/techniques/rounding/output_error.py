"""From the rows that were seen of a layer's input to the error of its output."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from isobit.encodings.quant_spec import Lpbq, PerBlock
from isobit.statistics.layer_rows.gram import Gram
from isobit.statistics.layer_rows.rows import Rows, paired_values
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
    damping: float,
    *,
    centered: bool,
) -> OutputError:
    """The error of replacing `weight` (groups, outputs, columns), over the rows of all readers of it.

    `seen` are rows of the quantized model and of the float model, where they are told apart. Raises DataError as
    `isobit.statistics.Gram.of`.
    """
    if layer.patches.columns <= LARGE:
        grams = [Gram.of(rows, reference) for rows, reference in seen]
        total = Gram.sum([gram.centered() if centered else gram for gram in grams])
        if not total.has_reference:
            return Objective.of(weight, total, damping)
        halves = [part.centered() if centered else part for pair in seen for part in half_grams(*pair)]
        return reconstruction(weight, total, halves, damping)
    granularity = layer.placement.spec.granularity
    blocks = 1
    if isinstance(granularity, PerBlock | Lpbq):  # a block of a convolution holds all taps of its channels
        blocks = granularity.size * int(np.prod(layer.patches.kernel, dtype=np.int64))
    return RowObjective.of(
        weight, [paired_values(*pair)[0] for pair in seen], centered=centered, damping=damping, multiple=blocks
    )
