"""The second moments that the errors of a layer's outputs share, and what solvers work out of them once."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from isobit.statistics.layer_rows.gram import Gram

Matrix = NDArray[np.float64]

#: Weights that a weight is paired with in a descent: those whose inputs go along with its own most. All pairs would
#: cost the square of the weights a channel, and make hardly more of it.
PARTNERS = 32


@dataclass(frozen=True, eq=False)
class Curvature:
    """H of ``v H vᵀ``, (groups, columns, columns): one for all outputs of a layer, and for all layers of one input."""

    hessian: Matrix
    _factors: dict[bool, list[tuple[NDArray[np.intp], Matrix]]] = field(default_factory=dict)

    @classmethod
    def of(cls, gram: Gram, damping: float) -> Curvature:
        """The mean second moments, with `ridge_of` on their diagonal."""
        hessian = gram.second / gram.count
        diagonal = np.arange(gram.columns)
        hessian[:, diagonal, diagonal] += ridge_of(gram, damping)
        return cls(hessian)

    def factors(self, *, activation_order: bool) -> list[tuple[NDArray[np.intp], Matrix]]:
        """Of each group the order of its columns, and R of ``H = R D Rᵀ`` in it.

        R is upper triangular with ones on its diagonal, D diagonal. With `activation_order` the columns with the
        largest second moments come first.
        """
        if activation_order not in self._factors:
            self._factors[activation_order] = [_factor(hessian, activation_order) for hessian in self.hessian]
        return self._factors[activation_order]

    @cached_property
    def single(self) -> NDArray[np.float32]:
        """H in single precision, for products in which nothing cancels."""
        return self.hessian.astype(np.float32)

    @cached_property
    def partners(self) -> tuple[NDArray[np.int32], Matrix]:
        """For each column the `PARTNERS` others, or all, that it goes along with most, and H of the two.

        Both (groups, columns, partners).
        """
        found = self._partners()
        return found, np.take_along_axis(self.hessian, found.astype(np.intp), axis=2)

    def _partners(self) -> NDArray[np.int32]:
        columns = self.hessian.shape[-1]
        if columns <= PARTNERS:
            return np.stack([_others(columns)] * len(self.hessian))
        found = np.empty((*self.hessian.shape[:2], PARTNERS), np.int32)
        for hessian, into in zip(self.hessian, found, strict=True):
            size = np.sqrt(np.diag(hessian))
            relation = np.abs(hessian / size).astype(np.float32)  # of one row: that row's own size does not matter
            np.fill_diagonal(relation, -1)
            into[:] = np.sort(np.argpartition(-relation, PARTNERS, axis=1)[:, :PARTNERS], axis=1)
        return found


def ridge_of(gram: Gram, damping: float) -> Matrix:
    """What a change of a weight costs for itself, (groups, 1): `damping` means of the diagonal of second moments."""
    return ridge(np.trace(gram.second, axis1=1, axis2=2) / (gram.count * gram.columns), damping)[:, None]


def ridge(mean_square: Matrix, damping: float) -> Matrix:
    """The same from the means themselves; a layer that never fires is rounded to nearest."""
    return damping * np.where(mean_square > 0, mean_square, 1.0)


def _factor(hessian: Matrix, activation_order: bool) -> tuple[NDArray[np.intp], Matrix]:
    columns = len(hessian)
    order = np.argsort(-np.diag(hessian), kind="stable") if activation_order else np.arange(columns)
    backwards = order[::-1]
    upper = np.linalg.cholesky(hessian[np.ix_(backwards, backwards)])[::-1, ::-1]
    return order, np.ascontiguousarray(upper / np.diag(upper))


def _others(columns: int) -> NDArray[np.int32]:
    """For each column all others, in order."""
    every = np.broadcast_to(np.arange(columns, dtype=np.int32), (columns, columns))
    return np.ascontiguousarray(every[~np.eye(columns, dtype=np.bool_)].reshape(columns, columns - 1))
