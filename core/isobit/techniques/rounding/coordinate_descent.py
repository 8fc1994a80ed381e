"""Coordinate descent over the integers: it solves the quadratic integer problem of AdaRound directly."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from isobit.techniques.rounding.grid import Grid
from isobit.techniques.rounding.objective import Objective
from isobit.threads import run_on_threads

Vector = NDArray[np.float64]

#: Outputs that one thread takes at a time; they do not depend on each other.
_OUTPUTS = 64


def coordinate_descent(
    objective: Objective, grid: Grid, integers: NDArray[np.float64], *, sweeps: int = 20
) -> NDArray[np.float64]:
    """Integers with a smaller error, (groups, outputs, columns), or the same ones.

    Every weight in turn moves to its best level with the others held; where none helps any more, pairs of weights move
    by one level each; `sweeps` is how often the pairs are gone through at most.
    """
    from numba import get_num_threads

    improved = np.array(integers, np.float64)
    groups, outputs, _ = improved.shape
    residual = grid.values(improved) @ objective.hessian - objective.linear

    def improve_from(start: int) -> None:
        for index in range(start, min(start + _OUTPUTS, groups * outputs)):
            g, o = divmod(index, outputs)
            _one_output(improved[g, o], residual[g, o], objective.hessian[g], grid, (g, o), sweeps)

    starts = [(start,) for start in range(0, groups * outputs, _OUTPUTS)]
    run_on_threads(improve_from, starts, get_num_threads())
    return improved


def _one_output(q: Vector, residual: Vector, hessian: Vector, grid: Grid, at: tuple[int, int], sweeps: int) -> None:
    """Move the integers of one output in place; `residual` is half the gradient and follows them."""
    from isobit.techniques.rounding.kernels import move_pairs, move_singles  # compiles on first use

    scale, zero_point = grid.scale[at], grid.zero_point[at]
    curvature = np.square(scale) * np.diag(hessian)
    move_singles(q, residual, hessian, scale, zero_point, grid.q_min, grid.q_max)
    for _ in range(sweeps):
        if move_pairs(q, residual, hessian, scale, grid.q_min, grid.q_max, curvature) == 0:
            break
        move_singles(q, residual, hessian, scale, zero_point, grid.q_min, grid.q_max)
