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
    "float64[:,::1](float64[:,::1], float64[:,::1], float64[:,::1], float64[:,::1], float64, float64, float64[:,::1])",
    cache=True,
    nogil=True,
    error_model="numpy",
)
def feed_back(
    moved: Matrix, target: Matrix, scale: Matrix, zero_point: Matrix, q_min: float, q_max: float, unit: Matrix
) -> Matrix:  # pragma: no cover (compiled)
    """Round the columns of `moved` (outputs, columns) one after the other, each error spread over those that follow.

    `moved` is `target` with the errors of earlier columns made up for, and becomes the integers; returns the distance
    of `target` from what was rounded. Row j of `unit` says what each error of column j asks of the columns behind it.
    """
    outputs, columns = moved.shape
    errors = np.empty((outputs, columns))
    for o in range(outputs):
        row = moved[o]
        for j in range(columns):
            q = zero_point[o, j]
            if scale[o, j] > 0:  # else it is held at zero
                q = min(max(np.rint(row[j] / scale[o, j]) + q, q_min), q_max)
            error = target[o, j] - (q - zero_point[o, j]) * scale[o, j]
            row[j] = q
            errors[o, j] = error
            for k in range(j + 1, columns):
                row[k] += error * unit[j, k]
    return errors


@numba.njit("void(float64[::1], float64, float64[::1])", cache=True, nogil=True, error_model="numpy")
def _add(residual: Vector, step: float, row: Vector) -> None:  # pragma: no cover (compiled)
    for k in range(residual.size):
        residual[k] += step * row[k]


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
            if scale[j] == 0:  # it is held at zero
                continue
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
    "int64(float64[::1], float64[::1], float64[:,::1], int32[:,::1], float64[:,::1], float64[::1], float64, float64, "
    "float64[::1])",
    cache=True,
    nogil=True,
    error_model="numpy",
)
def move_pairs(
    q: Vector,
    residual: Vector,
    hessian: Matrix,
    partners: NDArray[np.int32],
    ties: Matrix,
    scale: Vector,
    q_min: float,
    q_max: float,
    curvature: Vector,
) -> int:  # pragma: no cover (compiled)
    """Move each weight by one level together with that one of its `partners` that makes most of it, if the two gain.

    `ties` are the elements of H of each weight and its partners, side by side: H itself is too large for a cache.
    `curvature` is ``scale**2 * diag(H)``. Returns how many pairs moved.
    """
    moves = 0
    for j in range(q.size):
        for sign in (-1.0, 1.0):
            if scale[j] == 0 or q[j] + sign < q_min or q[j] + sign > q_max:
                continue
            step = sign * scale[j]
            limit = -_GAIN * curvature[j] - (curvature[j] + 2 * step * residual[j])
            partner, partner_sign = -1, 0.0
            for n in range(partners.shape[1]):
                k = partners[j, n]
                moved_residual = residual[k] + step * ties[j, n]
                change = curvature[k] - 2 * scale[k] * abs(moved_residual)
                if change < limit:
                    direction = -1.0 if moved_residual > 0 else 1.0
                    if scale[k] > 0 and q_min <= q[k] + direction <= q_max:
                        limit, partner, partner_sign = change, k, direction
            if partner >= 0:
                q[j] += sign
                q[partner] += partner_sign
                _add(residual, step, hessian[j])
                _add(residual, partner_sign * scale[partner], hessian[partner])
                moves += 1
    return moves


@numba.njit(
    "void(float64[:,::1], float64[:,::1], float64[:,::1], int32[:,::1], float64[:,::1], float64[:,::1], "
    "float64[:,::1], float64, float64, int64)",
    cache=True,
    nogil=True,
    error_model="numpy",
)
def descend(
    integers: Matrix,
    residuals: Matrix,
    hessian: Matrix,
    partners: NDArray[np.int32],
    ties: Matrix,
    scales: Matrix,
    zero_points: Matrix,
    q_min: float,
    q_max: float,
    sweeps: int,
) -> None:  # pragma: no cover (compiled)
    """Move the integers of some outputs, (outputs, columns), in place: singles to the end, then pairs and singles."""
    curvature = np.empty(integers.shape[1])
    for o in range(integers.shape[0]):
        q, residual, scale, zero_point = integers[o], residuals[o], scales[o], zero_points[o]
        for j in range(q.size):
            curvature[j] = scale[j] * scale[j] * hessian[j, j]
        move_singles(q, residual, hessian, scale, zero_point, q_min, q_max)
        for _ in range(sweeps):
            if move_pairs(q, residual, hessian, partners, ties, scale, q_min, q_max, curvature) == 0:
                break
            move_singles(q, residual, hessian, scale, zero_point, q_min, q_max)


@numba.njit(
    "int64[::1](float64[:,::1], float64[:,::1], float64[:,::1], float64[:,::1], float64[:,::1], float64[:,::1], "
    "float64, float64, float64)",
    fastmath={"reassoc", "contract", "nsz"},
    cache=True,
    nogil=True,
    error_model="numpy",
)
def best_range(
    weight: Matrix,
    values: Matrix,
    residual: Matrix,
    hessian: Matrix,
    scale: Matrix,
    zero_point: Matrix,
    q_min: float,
    q_max: float,
    hopeless: float,
) -> NDArray[np.int64]:  # pragma: no cover (compiled)
    """Which of some ranges, the columns of `scale`, each row of one block of a weight takes, with the others held.

    `values` is the block rounded to nearest in the first range, `residual` half the gradient of the error there; it
    becomes the change that the choice brings. A row's search ends where its error is `hopeless` times the first one.
    """
    rows, columns = weight.shape
    choice = np.zeros(rows, np.int64)
    change, best_change = np.empty(columns), np.empty(columns)
    for o in range(rows):
        own = 0.0
        for i in range(columns):
            along = 0.0
            for k in range(columns):
                along += hessian[i, k] * (values[o, k] - weight[o, k])
            own += along * (values[o, i] - weight[o, i])
        best = 0.0
        best_change[:] = 0.0
        for candidate in range(1, scale.shape[1]):
            s, z = scale[o, candidate], zero_point[o, candidate]
            for i in range(columns):
                q = min(max(np.rint(weight[o, i] / s) + z, q_min), q_max)
                change[i] = (q - z) * s - values[o, i]
            error = 0.0
            for i in range(columns):
                along = 2 * residual[o, i]
                for k in range(columns):
                    along += hessian[i, k] * change[k]
                error += along * change[i]
            if error < best:
                best = error
                choice[o] = candidate
                best_change[:] = change
            elif error > best + (hopeless - 1) * own:
                break
        values[o] = best_change
    return choice
