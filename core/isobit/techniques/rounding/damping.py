"""How much a layer's weights are held near the float ones: as much as the data asks for where it is little."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from isobit.encodings.ranges import encode_weight
from isobit.statistics.layer_rows.gram import Gram
from isobit.techniques.rounding.gptq_solver import gptq
from isobit.techniques.rounding.grid import Grid
from isobit.techniques.rounding.layers import Layer
from isobit.techniques.rounding.objective import Objective

#: Dampings that are tried, in means of the diagonal of the second moments. The last one is taken without halves to try.
DAMPINGS = (0.01, 0.1, 0.5)

#: A larger damping must do better by this share: with plenty of data all do alike.
_CLEAR = 0.03

#: Groups, and outputs of each, that are rounded to try them.
_GROUPS, _OUTPUTS = 8, 32


def trusted_damping(layer: Layer, weight: NDArray[np.float32], halves: Sequence[Gram]) -> float:
    """The damping with which weights rounded for one half of the data do best on the other.

    `weight` (groups, outputs, columns); `halves` are sums over the quantized model's rows of the two. With few rows for
    many columns, second moments have directions that seem free and are not, and rounding moves all its error there.
    Some outputs are rounded by GPTQ to the min-max grid for it.
    """
    if len(halves) != 2:
        return DAMPINGS[-1]
    groups, outputs = (
        np.unique(np.linspace(0, size - 1, min(size, most)).astype(np.int64))
        for size, most in ((weight.shape[0], _GROUPS), (weight.shape[1], _OUTPUTS))
    )
    some = np.ix_(groups, outputs)
    grid = _grid(layer, weight)
    grid = Grid(grid.scale[some], grid.zero_point[some], grid.q_min, grid.q_max)
    chosen, exact = weight[some], weight[some].astype(np.float64)
    parts = [Gram(half.count, half.total[groups], half.second[groups]) for half in halves]
    fitted, judge = parts
    errors = []
    for damping in DAMPINGS:
        change = grid.values(gptq(Objective.of(chosen, fitted, damping), grid, exact)) - exact
        errors.append(float(((change @ judge.second) * change).sum()))
    return next(d for d, error in zip(DAMPINGS, errors, strict=True) if error <= (1 + _CLEAR) * min(errors))


def _grid(layer: Layer, weight: NDArray[np.float32]) -> Grid:
    """The min-max grid of the layer."""
    placement, patches = layer.placement, layer.patches
    axes = {"channel_axis": placement.channel_axis, "block_axis": placement.block_axis}
    encoding = encode_weight(weight.reshape(patches.weight_shape), placement.spec, **axes)  # type: ignore[arg-type]
    return Grid.of(encoding, patches)
