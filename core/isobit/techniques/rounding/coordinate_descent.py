"""Coordinate descent over the integers: it solves the quadratic integer problem of AdaRound directly."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from isobit.techniques.rounding.grid import Grid
from isobit.techniques.rounding.objective import Objective, OutputError
from isobit.threads import run_on_threads

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

#: Outputs that one thread takes at a time; they do not depend on each other.
_OUTPUTS = 64

_NO_PARTNERS = np.zeros((1, 0, 0), np.int32), np.zeros((1, 0, 0))


def coordinate_descent(objective: OutputError, grid: Grid, integers: Matrix, *, sweeps: int = 20) -> Matrix:
    """Integers with a smaller error, (groups, outputs, columns), or the same ones.

    Every weight in turn moves to its best level with the others held; where none helps any more, pairs of weights with
    related inputs move by one level each; `sweeps` is how often the pairs are gone through at most. The parts of an
    objective are gone through in order.
    """
    improved = np.array(integers, np.float64)
    values = grid.values(improved)
    for part, within in objective.parts(values):
        columns = grid.part(part)
        improved[..., part] = _descend(within, columns, np.ascontiguousarray(improved[..., part]), sweeps)
        values[..., part] = columns.values(improved[..., part])
    return improved


def _descend(objective: Objective, grid: Grid, improved: Matrix, sweeps: int) -> Matrix:
    """Move the integers of one part in place, and return them."""
    from numba import get_num_threads

    groups, outputs, _ = improved.shape
    residual = grid.values(improved) @ objective.hessian - objective.linear
    partners, ties = objective.partners if sweeps else _NO_PARTNERS

    def improve_from(start: int) -> None:
        for index in range(start, min(start + _OUTPUTS, groups * outputs)):
            g, o = divmod(index, outputs)
            _one_output(
                improved[g, o],
                residual[g, o],
                objective.hessian[g],
                partners[g % len(partners)],
                ties[g % len(ties)],
                grid,
                (g, o),
                sweeps,
            )

    starts = [(start,) for start in range(0, groups * outputs, _OUTPUTS)]
    run_on_threads(improve_from, starts, get_num_threads())
    return improved


def _one_output(
    q: Vector,
    residual: Vector,
    hessian: Matrix,
    partners: NDArray[np.int32],
    ties: Matrix,
    grid: Grid,
    at: tuple[int, int],
    sweeps: int,
) -> None:
    """Move the integers of one output in place; `residual` is half the gradient and follows them."""
    from isobit.techniques.rounding.kernels import move_pairs, move_singles  # compiles on first use

    scale, zero_point = grid.scale[at], grid.zero_point[at]
    curvature = np.square(scale) * np.diag(hessian)
    move_singles(q, residual, hessian, scale, zero_point, grid.q_min, grid.q_max)
    for _ in range(sweeps):
        if move_pairs(q, residual, hessian, partners, ties, scale, grid.q_min, grid.q_max, curvature) == 0:
            break
        move_singles(q, residual, hessian, scale, zero_point, grid.q_min, grid.q_max)
