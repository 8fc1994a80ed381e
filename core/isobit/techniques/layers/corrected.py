"""What a layer can make up for of an error of its output that comes with its inputs: as far as data teaches it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: Damping that is tried, in means of the inputs' variances; the least gain, as a share of the error, that counts.
_RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
_GAIN = 0.01

#: The share of squares that a variance of float32 values is told from rounding by, and squares that are none.
_ROUNDING, _SMALLEST = 1e-12, 1e-30

#: Rows that are multiplied at once in float64.
_CHUNK = 2048


@dataclass(frozen=True, eq=False)
class Correction:
    """What is added to a weight (groups, outputs, columns) and a bias (groups, outputs), and the share it explains."""

    weight: Floats
    bias: Floats
    gain: float


def corrected(
    x: NDArray[np.float32], left: Floats, first: NDArray[np.bool_], has_bias: bool = True
) -> Correction | None:
    """The linear map of rows x (rows, groups, columns) that explains most of `left` (rows, groups, outputs).

    It is learned from the rows of one half and judged on the other, and the other way round; `first` marks one of them.
    The damping that explains most there is that of the map, which is learned from all. None where none explains 1 %.
    """
    if first.all() or not first.any():
        return None
    halves = [_Sums.of(x[which], left[which], has_bias) for which in (first, ~first)]
    whole = halves[0] + halves[1]
    power = float(whole.power)
    if not power > 0:
        return None
    gains = []
    for ridge in _RIDGES:
        missing = sum(judged.missing(learned.solved(ridge)) for learned, judged in (halves, halves[::-1]))
        gains.append(1 - missing / power)
    best = int(np.argmax(gains))
    if not gains[best] > _GAIN:
        return None
    solved = whole.solved(_RIDGES[best])
    return Correction(solved[:, :, :-1], solved[:, :, -1], gains[best])


@dataclass(frozen=True, eq=False)
class _Sums:
    """Sums over rows, with a last column of ones (of zeros without a bias): inputs by inputs, outputs by inputs."""

    count: int
    second: Floats
    cross: Floats
    power: float

    @classmethod
    def of(cls, x: NDArray[np.float32], left: Floats, has_bias: bool) -> _Sums:
        groups, columns = x.shape[1:]
        second = np.zeros((groups, columns + 1, columns + 1))
        cross = np.zeros((groups, left.shape[2], columns + 1))
        for start in range(0, len(x), _CHUNK):
            part = x[start : start + _CHUNK].astype(np.float64).transpose(1, 0, 2)
            part = np.pad(part, ((0, 0), (0, 0), (0, 1)), constant_values=float(has_bias))
            second += part.swapaxes(1, 2) @ part
            cross += left[start : start + _CHUNK].transpose(1, 2, 0) @ part
        return cls(len(x), second, cross, float(np.square(left).sum()))

    def __add__(self, other: _Sums) -> _Sums:
        second, cross = self.second + other.second, self.cross + other.cross
        return _Sums(self.count + other.count, second, cross, self.power + other.power)

    def solved(self, ridge: float) -> Floats:
        """The map of least error and damping, the last column the bias, which is not damped."""
        squares = np.einsum("gcc->gc", self.second)[:, :-1]
        variances = (squares - np.square(self.second[:, -1, :-1]) / self.count).mean(axis=1)
        means = squares.mean(axis=1)
        # inputs that never change leave rounding of their squares; what is damped by that alone is singular
        variances = np.where(variances > _ROUNDING * means, variances, np.where(means > _SMALLEST, means, 1.0))
        damping = np.zeros_like(self.second)
        diagonal = np.arange(damping.shape[1])
        damping[:, diagonal, diagonal] = ridge * variances[:, None]
        damping[:, -1, -1] = 1e-9 * self.count
        return np.asarray(np.linalg.solve(self.second + damping, self.cross.swapaxes(1, 2)).swapaxes(1, 2))

    def missing(self, solved: Floats) -> float:
        """The squares that a map leaves of these rows."""
        made = 2 * np.vdot(solved, self.cross) - np.vdot(solved @ self.second, solved)
        return self.power - float(made)
