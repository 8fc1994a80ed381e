"""Coordinate descent over the integers: it solves the quadratic integer problem of AdaRound directly."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from isobit.techniques.rounding.grid import Grid
from isobit.techniques.rounding.objective import Objective, OutputError
from isobit.threads import numba_threads, run_on_threads

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
    from isobit.techniques.rounding.kernels import descend  # compiles on first use

    groups, outputs, _ = improved.shape
    residual = grid.values(improved) @ objective.hessian - objective.linear  # half the gradient; follows the integers
    partners, ties = objective.shape.partners if sweeps else _NO_PARTNERS

    def improve_from(g: int, start: int) -> None:
        some, shared = slice(start, start + _OUTPUTS), g % len(partners)
        moved, slopes, scales, zeros = (values[g, some] for values in (improved, residual, grid.scale, grid.zero_point))
        ends = float(grid.q_min), float(grid.q_max)
        descend(moved, slopes, objective.hessian[g], partners[shared], ties[shared], scales, zeros, *ends, sweeps)

    starts = [(g, start) for g in range(groups) for start in range(0, outputs, _OUTPUTS)]
    run_on_threads(improve_from, starts, numba_threads())
    return improved
