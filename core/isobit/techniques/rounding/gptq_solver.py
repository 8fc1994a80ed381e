"""GPTQ: rounding one column after the other; the columns that follow make up for each error."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from isobit.techniques.rounding.grid import Grid
from isobit.techniques.rounding.objective import OutputError

Matrix = NDArray[np.float64]

#: Columns in a block: their errors are spread over each later block in one matrix product.
BLOCK = 128


def gptq(
    objective: OutputError, grid: Grid, weight: NDArray[np.floating] | None = None, *, activation_order: bool = True
) -> Matrix:
    """Integers, as floats, (groups, outputs, columns).

    Starts from the real weight with the least error; of an objective in parts, each part does with the parts before it
    rounded and those behind it as in `weight`. With `activation_order` the columns with the largest second moments come
    first. Source: Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
    Transformers", algorithm 1, in the form of LDLQ with one factorisation: Chee et al. 2023, "QuIP: 2-Bit Quantization
    of Large Language Models With Guarantees", theorem 6.
    """
    values = np.array(objective.linear if weight is None else weight, np.float64)
    integers = np.empty_like(values)
    for part, within in objective.parts(values):
        columns = grid.part(part)
        target = within.target()
        for g, (order, unit) in enumerate(within.shape.factors(activation_order=activation_order)):
            integers[g, :, part] = _one_group(target[g], order, unit, columns, g)
        values[..., part] = columns.values(integers[..., part])
    return integers


def _one_group(target: Matrix, order: NDArray[np.intp], unit: Matrix, grid: Grid, group: int) -> Matrix:
    from isobit.techniques.rounding.kernels import feed_back  # compiles on first use

    columns, scale, zero_point = len(order), grid.scale[group], grid.zero_point[group]
    wanted, steps, zeros = (np.ascontiguousarray(values[:, order]) for values in (target, scale, zero_point))
    errors, rounded = np.empty_like(wanted), np.empty_like(wanted)
    for start in range(0, columns, BLOCK):
        block = slice(start, start + BLOCK)
        moved = wanted[:, block] + errors[:, :start] @ unit[:start, block]
        corner, step, zero, aim = map(
            np.ascontiguousarray, (unit[block, block], steps[:, block], zeros[:, block], wanted[:, block])
        )
        errors[:, block] = feed_back(moved, aim, step, zero, grid.q_min, grid.q_max, corner)
        rounded[:, block] = moved
    integers = np.empty_like(rounded)
    integers[:, order] = rounded
    return integers
