"""The error of a layer's output as a function of its weight, as a quadratic form for each output channel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from isobit.statistics.layer_rows.gram import Gram
from isobit.techniques.rounding.curvature import Curvature, ridge_of

Matrix = NDArray[np.float64]
Outputs = slice | NDArray[np.bool_]

ALL = slice(None)

#: Errors of layers with so many weights a channel are summed in float32: their products are what takes the time, and
#: what is multiplied is the distance from the float weight, so that nothing cancels.
_SINGLE_FROM = 256


class OutputError(Protocol):
    """What solvers ask of the error of a layer's output: of all columns at once, and of a part with the others held."""

    @property
    def linear(self) -> Matrix:
        """b of ``v H vᵀ - 2 v·b + c``, (groups, outputs, columns)."""
        ...

    @property
    def constant(self) -> Matrix:
        """c: the power of the float layer's output, (groups, outputs)."""
        ...

    @property
    def damping(self) -> float:
        """What a change of a weight costs for itself, in means of the diagonal of the second moments."""
        ...

    def outputs(self, some: slice) -> OutputError:
        """The error of these outputs alone."""
        ...

    def error(self, weight: NDArray[np.floating], outputs: Outputs = ALL) -> Matrix:
        """The error of each of these output channels, (groups, outputs)."""
        ...

    def curvature(self, weight: NDArray[np.floating]) -> Matrix:
        """``v H vᵀ`` of each output channel, (groups, outputs)."""
        ...

    def parts(self, weight: Matrix) -> Iterator[tuple[slice, Objective]]:
        """Parts of the columns, each with its error while the others are as in `weight`, which the caller changes."""
        ...


@dataclass(frozen=True, eq=False)
class Objective:
    """``error(v) = v H vᵀ - 2 v·b + c`` for each row v of a weight (groups, outputs, columns).

    Without damping it is the mean over the rows of the Gram of ``(v·x - w·r)²``: the output with the weight v on the
    quantized model's input x against that with the float weight w on the float model's input r, if the Gram has such
    rows (asymmetric reconstruction; Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization",
    eq. 25), or else on x too.

    `shape` holds H, `linear` (groups, outputs, columns) b and `constant` (groups, outputs) c.
    `origin` is a weight near those that are tried, and `least` says that none has a smaller error.
    """

    shape: Curvature
    linear: Matrix
    constant: Matrix
    origin: Matrix | None = None
    least: bool = False
    damping: float = 0.0

    @classmethod
    def of(
        cls, weight: NDArray[np.float32], gram: Gram, damping: float = 0.01, shape: Curvature | None = None
    ) -> Objective:
        """The error of replacing `weight` (groups, outputs, columns).

        `damping`, times the mean of the diagonal of the second moments, weighs the distance from `weight` itself: it
        makes a rank-deficient Gram definite, and keeps weights that the rows say nothing of. `shape` is the curvature
        of the same Gram with the same damping, if another layer has it already.
        """
        w = weight.astype(np.float64)
        linear = w @ (gram.cross.transpose(0, 2, 1) / gram.count)
        power = w @ (gram.reference / gram.count) if gram.has_reference else linear
        held = ridge_of(gram, damping)
        constant = (power * w).sum(axis=-1) + held * np.square(w).sum(axis=-1)
        shape = Curvature.of(gram, damping) if shape is None else shape
        return cls(shape, linear + held[..., None] * w, constant, w, not gram.has_reference, damping)

    @property
    def hessian(self) -> Matrix:
        """H, (groups, columns, columns)."""
        return self.shape.hessian

    def outputs(self, some: slice) -> Objective:
        """The error of these outputs alone."""
        origin = None if self.origin is None else self.origin[:, some]
        return replace(self, linear=self.linear[:, some], constant=self.constant[:, some], origin=origin)

    @classmethod
    def toward(cls, target: Matrix, error: Matrix, shape: Curvature, damping: float) -> Objective:
        """The one whose least error, (groups, outputs), is at a given weight."""
        linear = target @ shape.hessian
        return cls(shape, linear, (linear * target).sum(axis=-1) + error, target, True, damping)

    def error(self, weight: NDArray[np.floating], outputs: Outputs = ALL) -> Matrix:
        """The error of each of these output channels, (groups, outputs)."""
        v = weight.astype(np.float64)
        if self.origin is None or self.hessian.shape[-1] < _SINGLE_FROM:
            linear, constant = self.linear[:, outputs], self.constant[:, outputs]
            return np.asarray(((v @ self.hessian - 2 * linear) * v).sum(axis=-1) + constant)
        step = v - self.origin[:, outputs]
        errors = self.curvature(step)
        if self.least:
            errors += self._least_error[:, outputs]
        else:
            slope, error = self._at_origin
            errors += 2 * (step * slope[:, outputs]).sum(axis=-1) + error[:, outputs]
        return errors

    @cached_property
    def _least_error(self) -> Matrix:
        """The error at an origin that is the least, (groups, outputs): 0, or last bits, if that is the float weight."""
        assert self.origin is not None
        return np.asarray(np.maximum(self.constant - (self.linear * self.origin).sum(axis=-1), 0.0))

    def curvature(self, weight: NDArray[np.floating]) -> Matrix:
        """``v H vᵀ`` of each output channel, (groups, outputs)."""
        if self.hessian.shape[-1] < _SINGLE_FROM:
            v = weight.astype(np.float64)
            return np.asarray(((v @ self.hessian) * v).sum(axis=-1))
        single = weight.astype(np.float32)
        return np.asarray(np.einsum("goc,goc->go", single @ self.shape.single, single, dtype=np.float64))

    def target(self) -> Matrix:
        """The real weight with the least error, (groups, outputs, columns)."""
        if self.least and self.origin is not None:
            return self.origin
        return np.asarray(np.linalg.solve(self.hessian, self.linear.transpose(0, 2, 1)).transpose(0, 2, 1))

    def parts(self, weight: Matrix) -> Iterator[tuple[slice, Objective]]:
        """All columns as one part."""
        yield ALL, self

    @cached_property
    def _at_origin(self) -> tuple[Matrix, Matrix]:
        """Half the gradient at `origin`, and the error there."""
        origin = np.zeros_like(self.linear) if self.origin is None else self.origin
        slope = origin @ self.hessian - self.linear
        return slope, ((slope - self.linear) * origin).sum(axis=-1) + self.constant
