"""The numba kernels of rounding. Compiled once a machine and cached."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

#: Smallest gain for which a weight moves, as a share of the move's own cost: without it, float noise could make a
#: weight move back and forth for ever.
_GAIN = 1e-9


@numba.njit(
    "float64[:,::1](float64[:,::1], float64[:,::1], float64[:,::1], float64, float64, float64[:,::1])",
    cache=True,
    nogil=True,
    error_model="numpy",
)
def feed_back(
    target: Matrix, scale: Matrix, zero_point: Matrix, q_min: float, q_max: float, upper: Matrix
) -> Matrix:  # pragma: no cover (compiled)
    """Round the columns of `target` (outputs, columns) one after the other, each error spread over those that follow.

    `target` becomes the integers; returns the errors, each divided by the diagonal of `upper`.
    """
    outputs, columns = target.shape
    errors = np.empty((outputs, columns))
    for o in range(outputs):
        row = target[o]
        for j in range(columns):
            q = min(max(np.rint(row[j] / scale[o, j]) + zero_point[o, j], q_min), q_max)
            error = (row[j] - (q - zero_point[o, j]) * scale[o, j]) / upper[j, j]
            row[j] = q
            errors[o, j] = error
            for k in range(j + 1, columns):
                row[k] -= error * upper[j, k]
    return errors


@numba.njit("void(float64[::1], float64, float64[::1])", cache=True, nogil=True, error_model="numpy")
def _add(residual: Vector, step: float, row: Vector) -> None:  # pragma: no cover (compiled)
    for k in range(residual.size):
        residual[k] += step * row[k]


@numba.njit(
    "float64(float64[::1], float64[::1], float64[::1], float64[::1], float64)",
    fastmath=True,
    cache=True,
    nogil=True,
    error_model="numpy",
)
def _best_partner(
    curvature: Vector, scale: Vector, residual: Vector, row: Vector, step: float
) -> float:  # pragma: no cover (compiled)
    """The least change of the error that a move of one more weight by one level brings after `step` along `row`."""
    best = np.inf
    for k in range(curvature.size):
        best = min(best, curvature[k] - 2 * scale[k] * abs(residual[k] + step * row[k]))
    return best


@numba.njit(
    "int64(float64[::1], float64[::1], float64[:,::1], float64[::1], float64[::1], float64, float64)",
    cache=True,
    nogil=True,
    error_model="numpy",
)
def move_singles(
    q: Vector, residual: Vector, hessian: Matrix, scale: Vector, zero_point: Vector, q_min: float, q_max: float
) -> int:  # pragma: no cover (compiled)
    """Move each weight of a row in turn to its best level, until none moves; returns how often one did.

    `residual` is half the gradient, ``H v - b`` for the values v of the integers `q`, and follows them.
    """
    moves = 0
    while True:
        moves_before = moves
        for j in range(q.size):
            curvature = hessian[j, j]
            level = np.rint((q[j] - zero_point[j]) - residual[j] / (curvature * scale[j])) + zero_point[j]
            level = min(max(level, q_min), q_max)
            if level != q[j]:
                step = (level - q[j]) * scale[j]
                if step * (step * curvature + 2 * residual[j]) < -_GAIN * step * step * curvature:
                    q[j] = level
                    _add(residual, step, hessian[j])
                    moves += 1
        if moves == moves_before:
            return moves


@numba.njit(
    "int64(float64[::1], float64[::1], float64[:,::1], float64[::1], float64, float64, float64[::1])",
    cache=True,
    nogil=True,
    error_model="numpy",
)
def move_pairs(
    q: Vector, residual: Vector, hessian: Matrix, scale: Vector, q_min: float, q_max: float, curvature: Vector
) -> int:  # pragma: no cover (compiled)
    """Move each weight by one level together with the partner that makes most of it, where the two gain.

    `curvature` is ``scale**2 * diag(H)``. Returns how many pairs moved.
    """
    moves = 0
    for j in range(q.size):
        row = hessian[j]
        for sign in (-1.0, 1.0):
            if q[j] + sign < q_min or q[j] + sign > q_max:
                continue
            step = sign * scale[j]
            limit = -_GAIN * curvature[j] - step * (step * row[j] + 2 * residual[j])
            if _best_partner(curvature, scale, residual, row, step) >= limit:
                continue
            partner, partner_sign = -1, 0.0
            for k in range(q.size):
                moved_residual = residual[k] + step * row[k]
                change = curvature[k] - 2 * scale[k] * abs(moved_residual)
                direction = -1.0 if moved_residual > 0 else 1.0
                if change < limit and k != j and q_min <= q[k] + direction <= q_max:
                    limit, partner, partner_sign = change, k, direction
            if partner >= 0:
                q[j] += sign
                q[partner] += partner_sign
                _add(residual, step, row)
                _add(residual, partner_sign * scale[partner], hessian[partner])
                moves += 1
    return moves
