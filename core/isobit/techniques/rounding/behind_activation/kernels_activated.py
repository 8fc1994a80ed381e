"""The numba kernel of the descent behind an activation function. Compiled once a machine and cached."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

#: Smallest gain for which a weight moves, as a share of the move's own cost: without it, float noise could make a
#: weight move back and forth for ever.
_GAIN = 1e-9

#: The compiler may sum over rows in another order, so that it can vectorise.
_SUMS: dict[str, Any] = {"fastmath": {"reassoc", "contract"}, "cache": True, "nogil": True, "error_model": "numpy"}


@numba.njit("float64(float64, float64, float64, float64)", cache=True, nogil=True, inline="always")
def _activate(y: float, slope: float, low: float, high: float) -> float:  # pragma: no cover (compiled)
    value = y if y > 0 else slope * y
    return min(max(value, low), high)


@numba.njit("UniTuple(float64, 2)(float64[::1], float64[::1], float32[::1])", **_SUMS)
def _derivatives(
    pull: Vector, share: Vector, x: NDArray[np.float32]
) -> tuple[float, float]:  # pragma: no cover (compiled)
    gradient, curvature = 0.0, 0.0
    for r in range(x.size):
        gradient += pull[r] * x[r]
        curvature += share[r] * x[r] * x[r]
    return gradient, curvature


@numba.njit("float64(float64[::1], float64[::1], float32[::1], float64, float64, float64, float64)", **_SUMS)
def _loss(
    y: Vector, target: Vector, x: NDArray[np.float32], step: float, slope: float, low: float, high: float
) -> float:  # pragma: no cover (compiled)
    total = 0.0
    for r in range(y.size):
        error = _activate(y[r] + step * x[r], slope, low, high) - target[r]
        total += error * error
    return total


@numba.njit(
    "void(float64[::1], float64[::1], float64[::1], float64[::1], float64[::1], float64, float64, float64)",
    cache=True,
    nogil=True,
    error_model="numpy",
)
def _reweigh(
    y: Vector, float_y: Vector, target: Vector, pull: Vector, share: Vector, slope: float, low: float, high: float
) -> None:  # pragma: no cover (compiled)
    """The weight of each row: the square of the secant of f from y to the float layer's y, 0 where both are cut off."""
    for r in range(y.size):
        gap = y[r] - float_y[r]
        if abs(gap) > 1e-12 * abs(float_y[r]):
            secant = (_activate(y[r], slope, low, high) - target[r]) / gap
        elif low < target[r] < high:
            secant = 1.0 if float_y[r] > 0 else slope
        else:
            secant = 0.0
        share[r] = secant * secant
        pull[r] = share[r] * gap


@numba.njit(
    "int64(float64[::1], float64[::1], float32[:,::1], float64[::1], float64[::1], float64[::1], float64[::1],"
    " float64[::1], float64, int64)",
    cache=True,
    nogil=True,
    error_model="numpy",
)
def move_activated(
    q: Vector,
    weight: Vector,
    x: NDArray[np.float32],
    y: Vector,
    float_y: Vector,
    scale: Vector,
    zero_point: Vector,
    limits: Vector,
    ridge: float,
    sweeps: int,
) -> int:  # pragma: no cover (compiled)
    """Move each weight of one output in turn, in place, until none moves; returns how often one did.

    The level to move to is that of least squares over the rows, weighted by secants; the move is made if the error
    itself falls. `y` is the output at each row before the activation and follows the integers `q`; `float_y` is the
    float layer's; `x` is (columns, rows); `limits` is slope, low and high of the activation, and the lowest and highest
    integer.
    """
    slope, low, high, q_min, q_max = limits[0], limits[1], limits[2], limits[3], limits[4]
    target, pull, share = np.empty(y.size), np.empty(y.size), np.empty(y.size)
    for r in range(y.size):
        target[r] = _activate(float_y[r], slope, low, high)
    _reweigh(y, float_y, target, pull, share, slope, low, high)
    loss = _loss(y, target, x[0], 0.0, slope, low, high)
    moves = 0
    for _ in range(sweeps):
        moves_before = moves
        for j in range(q.size):
            if scale[j] == 0:  # it is held at zero
                continue
            gradient, curvature = _derivatives(pull, share, x[j])
            value = (q[j] - zero_point[j]) * scale[j]
            apart = value - weight[j]
            gradient, curvature = gradient + ridge * apart, curvature + ridge
            if curvature <= 0:
                continue
            level = np.rint((q[j] - zero_point[j]) - gradient / (curvature * scale[j])) + zero_point[j]
            level = min(max(level, q_min), q_max)
            if level == q[j]:
                continue
            step = (level - q[j]) * scale[j]
            new_loss = _loss(y, target, x[j], step, slope, low, high)
            if new_loss - loss + ridge * step * (step + 2 * apart) < -_GAIN * curvature * step * step:
                q[j] = level
                loss = new_loss
                for r in range(y.size):
                    y[r] += step * x[j, r]
                _reweigh(y, float_y, target, pull, share, slope, low, high)
                moves += 1
        if moves == moves_before:
            break
    return moves
