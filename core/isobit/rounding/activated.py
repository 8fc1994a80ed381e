"""The error behind the activation function, on sampled rows, and a descent in it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isobit.rounding.activation import Activation
from isobit.rounding.grid import Grid

Matrix = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ActivatedError:
    """``mean of (f(v·x + offset) - f(w·r + bias))²`` over rows, for each row v of a weight (groups, outputs, columns).

    x are the quantized model's inputs and r the float model's, where they are told apart; w is the float weight. A
    quadratic objective counts every change of the output; behind a Relu or a clip those count for nothing that stay
    where both models are cut off. Source: Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training
    Quantization", section 3.3, eq. 25, which has the activation function in the objective.

    `rows` (groups, columns, rows) of x and `reference` of r, float32; `weight` (groups, outputs, columns); `bias` and
    `offset` (groups, outputs). `damping` weighs the distance to w as in `isobit.rounding.Objective`.
    """

    activation: Activation
    rows: NDArray[np.float32]
    reference: NDArray[np.float32]
    weight: Matrix
    bias: Matrix
    offset: Matrix
    damping: float

    @classmethod
    def of(
        cls,
        activation: Activation,
        rows: NDArray[np.float32],
        reference: NDArray[np.float32] | None,
        weight: NDArray[np.float32],
        bias: Matrix,
        *,
        centered: bool,
        damping: float = 0.01,
    ) -> ActivatedError:
        """From rows (rows, groups, columns); `centered` if the bias will take up the mean error of the output."""
        x = np.ascontiguousarray(rows.transpose(1, 2, 0))
        r = x if reference is None else np.ascontiguousarray(reference.transpose(1, 2, 0))
        w = weight.astype(np.float64, order="C")  # a backend's weight may be a transposed view, which kernels refuse
        offset = bias
        if centered:
            mean, wanted = (part.mean(axis=2, dtype=np.float64) for part in (x, r))
            offset = bias + np.einsum("goc,gc->go", w, wanted)
            x = (x - mean[..., None]).astype(np.float32)
        return cls(activation, x, r, w, bias, offset, damping)

    def error(self, weight: NDArray[np.floating]) -> Matrix:
        """The error of each output channel, without damping, (groups, outputs)."""
        found = np.empty(weight.shape[:2])
        for g, o in np.ndindex(*found.shape):
            y, wanted = self._outputs(weight[g, o].astype(np.float64), g, o)
            slope = self._slope(g, o)
            found[g, o] = np.square(self.activation(y, slope) - self.activation(wanted, slope)).mean()
        return found

    def power(self) -> Matrix:
        """The mean square of each output channel behind the activation, (groups, outputs), as it is to be."""
        found = np.empty(self.weight.shape[:2])
        for g, o in np.ndindex(*found.shape):
            _, wanted = self._outputs(self.weight[g, o], g, o)
            found[g, o] = np.square(self.activation(wanted, self._slope(g, o))).mean()
        return found

    def descend(self, grid: Grid, integers: Matrix, *, sweeps: int = 20) -> Matrix:
        """Better integers, (groups, outputs, columns), never worse ones: each weight in turn moves while that helps."""
        from numba import get_num_threads

        found = np.array(integers, np.float64)
        with ThreadPoolExecutor(get_num_threads()) as threads:  # the kernel lets go of the interpreter
            list(threads.map(lambda at: self._one_output(grid, found, at, sweeps), np.ndindex(*found.shape[:2])))
        return found

    def _one_output(self, grid: Grid, found: Matrix, at: tuple[int, ...], sweeps: int) -> None:
        from isobit.rounding.kernels_activated import move_activated  # compiles on first use

        g, o = at
        q, scale, zero_point = found[at], grid.scale[at], grid.zero_point[at]
        y, wanted = self._outputs((q - zero_point) * scale, g, o)
        x = self.rows[g]
        ridge = self.damping * (float(np.square(x, dtype=np.float64).mean()) or 1.0) * x.shape[1]
        limits = np.array([self._slope(g, o), self.activation.low, self.activation.high, grid.q_min, grid.q_max])
        move_activated(q, self.weight[g, o], x, y, wanted, scale, zero_point, limits, ridge, sweeps)

    def _outputs(self, v: Matrix, g: int, o: int) -> tuple[Matrix, Matrix]:
        """Output o of group g before the activation at every row: with the weight v, and as it is to be."""
        return v @ self.rows[g] + self.offset[g, o], self.weight[g, o] @ self.reference[g] + self.bias[g, o]

    def _slope(self, g: int, o: int) -> float:
        slopes = self.activation.slope
        return float(slopes[(g * self.weight.shape[1] + o) % slopes.size])
