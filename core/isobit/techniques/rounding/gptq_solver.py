"""GPTQ: rounding one column after the other; the columns that follow make up for each error."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from isobit.techniques.rounding.grid import Grid
from isobit.techniques.rounding.objective import Objective

#: Columns in a block: their errors are spread over all later blocks in one matrix product.
BLOCK = 128


def gptq(objective: Objective, grid: Grid, *, activation_order: bool = True) -> NDArray[np.float64]:
    """Integers, as floats, (groups, outputs, columns).

    Starts from the real weight with the least error. With `activation_order` the columns with the largest second
    moments come first. Source: Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative
    Pre-trained Transformers", algorithm 1.
    """
    target = objective.target()
    return np.stack(
        [
            _one_group(target[g], objective.hessian[g], grid, grid.scale[g], grid.zero_point[g], activation_order)
            for g in range(len(target))
        ]
    )


def _one_group(
    target: NDArray[np.float64],
    hessian: NDArray[np.float64],
    grid: Grid,
    scale: NDArray[np.float64],
    zero_point: NDArray[np.float64],
    activation_order: bool,
) -> NDArray[np.float64]:
    from isobit.techniques.rounding.kernels import feed_back  # compiles on first use

    columns = len(hessian)
    order = np.argsort(-np.diag(hessian), kind="stable") if activation_order else np.arange(columns)
    inverse = np.linalg.inv(hessian[order][:, order])
    upper = np.ascontiguousarray(np.linalg.cholesky((inverse + inverse.T) / 2).T)
    ordered = np.ascontiguousarray(target[:, order])
    scale, zero_point = scale[:, order], zero_point[:, order]
    for start in range(0, columns, BLOCK):
        block = slice(start, start + BLOCK)
        block_columns = np.ascontiguousarray(ordered[:, block])
        corner = np.ascontiguousarray(upper[block, block])
        steps, zeros = (np.ascontiguousarray(values[:, block]) for values in (scale, zero_point))
        errors = feed_back(block_columns, steps, zeros, grid.q_min, grid.q_max, corner)
        ordered[:, block] = block_columns
        ordered[:, start + BLOCK :] -= errors @ upper[block, start + BLOCK :]
    integers = np.empty_like(ordered)
    integers[:, order] = ordered
    return integers
