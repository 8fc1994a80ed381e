"""The error of a layer's output as a function of its weight, as a quadratic form for each output channel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isobit.statistics.layer_rows.gram import Gram

Matrix = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Objective:
    """``error(v) = v H vᵀ - 2 v·b + c`` for each row v of a weight (groups, outputs, columns).

    Without damping it is the mean over the rows of the Gram of ``(v·x - w·r)²``: the output with the weight v on the
    quantized model's input x against that with the float weight w on the float model's input r, if the Gram has such
    rows (asymmetric reconstruction; Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization",
    eq. 25), or else on x too.

    `hessian` (groups, columns, columns), `linear` (groups, outputs, columns), `constant` (groups, outputs).
    """

    hessian: Matrix
    linear: Matrix
    constant: Matrix

    @classmethod
    def of(cls, weight: NDArray[np.float32], gram: Gram, damping: float = 0.01) -> Objective:
        """The error of replacing `weight` (groups, outputs, columns).

        `damping`, times the mean of the diagonal of the second moments, weighs the distance from `weight` itself: it
        makes a rank-deficient Gram definite, and keeps weights that the rows say nothing of.
        """
        w = weight.astype(np.float64)
        hessian = gram.second / gram.count
        linear = w @ (gram.cross / gram.count).transpose(0, 2, 1)
        constant = np.einsum("goi,gij,goj->go", w, gram.reference / gram.count, w, optimize=True)
        size = np.trace(hessian, axis1=1, axis2=2)[:, None, None] / gram.columns
        ridge = damping * np.where(size > 0, size, 1.0)  # a layer that never fires is rounded to nearest
        return cls(
            hessian + ridge * np.eye(gram.columns),
            linear + ridge * w,
            constant + ridge[:, :, 0] * np.square(w).sum(axis=-1),
        )

    def error(self, weight: NDArray[np.floating]) -> Matrix:
        """The error of each output channel, (groups, outputs)."""
        v = weight.astype(np.float64)
        return np.asarray(((v @ self.hessian - 2 * self.linear) * v).sum(axis=-1) + self.constant)

    def target(self) -> Matrix:
        """The real weight with the least error, (groups, outputs, columns)."""
        return np.asarray(np.linalg.solve(self.hessian, self.linear.transpose(0, 2, 1)).transpose(0, 2, 1))
