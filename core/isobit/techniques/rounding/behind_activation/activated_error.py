"""The error behind the activation function, on sampled rows, and a descent in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from isobit.techniques.rounding.behind_activation.activation import Activation
from isobit.techniques.rounding.grid import Grid
from isobit.threads import numba_threads, run_on_threads

Matrix = NDArray[np.float64]

#: Outputs that are computed at once.
_OUTPUTS = 64


@dataclass(frozen=True, eq=False)
class ActivatedError:
    """``mean of (f(v·x + offset) - f(w·r + bias))²`` over rows, for each row v of a weight (groups, outputs, columns).

    x are the quantized model's inputs and r the float model's, where they are told apart; w is the float weight. A
    quadratic objective counts every change of the output; behind a Relu or a clip those count for nothing that stay
    where both models are cut off. Source: Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training
    Quantization", section 3.3, eq. 25, which has the activation function in the objective.

    `rows` (groups, columns, rows) of x and `reference` of r, float32; `weight` (groups, outputs, columns); `bias` and
    `offset` (groups, outputs). `damping` weighs the distance to w as in `isobit.techniques.rounding.Objective`.
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
            mean, reference_mean = (inputs.mean(axis=2, dtype=np.float64) for inputs in (x, r))
            offset = bias + np.einsum("goc,gc->go", w, reference_mean)
            x = (x - mean[..., None]).astype(np.float32)
        return cls(activation, x, r, w, bias, offset, damping)

    def error(self, weight: NDArray[np.floating]) -> Matrix:
        """The error of each output channel, without damping, (groups, outputs)."""
        errors = np.empty(weight.shape[:2])
        for g, block, y, float_y in self._outputs(weight.astype(np.float64)):
            slope = self._slopes(g, block)
            errors[g, block] = np.square(self.activation(y, slope) - self.activation(float_y, slope)).mean(axis=1)
        return errors

    @cached_property
    def power(self) -> Matrix:
        """The mean square of each of the float layer's output channels behind the activation, (groups, outputs)."""
        powers = np.empty(self.weight.shape[:2])
        for g, block, _, float_y in self._outputs(None):
            powers[g, block] = np.square(self.activation(float_y, self._slopes(g, block))).mean(axis=1)
        return powers

    def descend(self, grid: Grid, integers: Matrix, *, sweeps: int = 20) -> Matrix:
        """Integers of a smaller error, (groups, outputs, columns): each weight in turn moves while it falls."""
        from isobit.techniques.rounding.behind_activation.kernels_activated import (
            move_activated,
        )  # compiles on first use

        improved = np.array(integers, np.float64)
        ridges = [self.damping * (float(np.square(x, dtype=np.float64).mean()) or 1.0) * x.shape[1] for x in self.rows]

        def move(g: int, o: int, y: Matrix, float_y: Matrix) -> None:
            slope = float(self._slopes(g, slice(o, o + 1))[0, 0])
            limits = np.array([slope, self.activation.low, self.activation.high, grid.q_min, grid.q_max])
            scale, zero_point = grid.scale[g, o], grid.zero_point[g, o]
            move_activated(
                improved[g, o],
                self.weight[g, o],
                self.rows[g],
                y,
                float_y,
                scale,
                zero_point,
                limits,
                ridges[g],
                sweeps,
            )

        for g, block, outputs, targets in self._outputs(grid.values(improved)):
            calls = [(g, block.start + i, outputs[i], targets[i]) for i in range(len(outputs))]
            run_on_threads(move, calls, numba_threads())
        return improved

    def _outputs(self, weight: Matrix | None) -> Iterator[tuple[int, slice, Matrix, Matrix]]:
        """Group, a block of its outputs, and these before the activation: with `weight`, and the float layer's."""
        groups, outputs, _ = self.weight.shape
        for g in range(groups):
            x, r = self.rows[g].astype(np.float64), self.reference[g].astype(np.float64)
            for start in range(0, outputs, _OUTPUTS):
                block = slice(start, min(start + _OUTPUTS, outputs))
                float_y = self.weight[g, block] @ r + self.bias[g, block, None]
                y = float_y if weight is None else weight[g, block] @ x + self.offset[g, block, None]
                yield g, block, y, float_y

    def _slopes(self, g: int, block: slice) -> Matrix:
        """The slopes of a block of outputs of a group, (outputs, 1)."""
        slopes, outputs = self.activation.slope, self.weight.shape[1]
        return slopes[np.arange(g * outputs + block.start, g * outputs + block.stop) % slopes.size, None]
