"""InputMoments: the second moments of what meets a layer's weight, so that an error of weights is one of outputs.

For a change D of the weight as a matrix, ``trace(D second Dᵀ)`` is the mean square of the change of the output about
its mean, which the bias takes up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isobit.statistics.layer_rows.gram import Gram

Floats = NDArray[np.float64]

#: Damping in means of the diagonal: so much where there are as many rows as columns, less with more rows.
_DAMPING = 0.01
_LEAST, _MOST = 1e-6, 1.0


@dataclass(frozen=True, eq=False)
class InputMoments:
    """``second`` (groups, columns, columns) and ``mean`` (groups, columns); None: every column counts alike, by itself.

    Without data a layer's error is that of its weights, which is what the identity says.
    """

    second: Floats | None = None
    mean: Floats | None = None

    @classmethod
    def of(cls, gram: Gram | None) -> InputMoments:
        """The moments about the mean, damped: columns that data says little or nothing of count a little all the same.

        Directions that few rows leave open would seem free. The damping shrinks with the rows for each column.
        """
        if gram is None:
            return cls()
        second = gram.centered().second / gram.count
        share = min(_MOST, max(_LEAST, _DAMPING * gram.columns / gram.count))
        floor = share * np.einsum("gcc->g", second) / gram.columns
        floor[floor <= 0] = 1.0  # inputs that never change: any factors serve, so the nearest weights do
        return cls(second + floor[:, None, None] * np.eye(gram.columns), gram.mean)

    def times(self, matrix: Floats) -> Floats:
        """(groups, n, columns) times the second moments."""
        return matrix if self.second is None else np.asarray(matrix @ self.second)

    def power(self, matrix: Floats) -> float:
        """The mean square about the mean, summed over outputs, of the output of a weight (groups, outputs, columns)."""
        return float((self.times(matrix) * matrix).sum())

    def marginal(self, outer: int) -> Floats | None:
        """Columns are `outer` by inner ones: moments of the outer ones (groups, outer, outer), summed over inner."""
        if self.second is None:
            return None
        groups, columns, _ = self.second.shape
        split = self.second.reshape(groups, outer, columns // outer, outer, columns // outer)
        return np.asarray(np.einsum("gajbj->gab", split))

    def of_features(self, basis: Floats) -> Floats:
        """The moments of features: `basis` (groups, rank, outer) on the outer columns, at every inner one.

        (groups, rank * inner, rank * inner), a rank's inner ones together.
        """
        assert self.second is not None  # without moments features are as independent as the basis, which is known
        groups, rank, outer = basis.shape
        inner = self.second.shape[1] // outer
        half = basis @ self.second.reshape(groups, outer, inner * outer * inner)
        half = half.reshape(groups, rank * inner, outer, inner).transpose(0, 2, 1, 3)
        both = basis @ half.reshape(groups, outer, rank * inner * inner)
        both = both.reshape(groups, rank, rank * inner, inner).transpose(0, 2, 1, 3)
        return np.ascontiguousarray(both.reshape(groups, rank * inner, rank * inner))


def on_outer(matrix: Floats, basis: Floats) -> Floats:
    """Matrix (groups, n, outer * inner) times the transposed basis at each inner column, (groups, n, rank * inner)."""
    groups, count, columns = matrix.shape
    rank, outer = basis.shape[1:]
    split = matrix.reshape(groups, count, outer, columns // outer).transpose(0, 1, 3, 2) @ basis[:, None].swapaxes(2, 3)
    return np.ascontiguousarray(split.transpose(0, 1, 3, 2).reshape(groups, count, rank * (columns // outer)))


def input_basis(matrix: Floats, moments: Floats | None, rank: int) -> Floats:
    """The rank directions of inputs (groups, rank, outer) that a weight needs most, the first ones first.

    `matrix` (groups, n, outer) reads inputs of these moments: the best approximation of it of every rank is one on the
    first directions (Eckart and Young, of the matrix times a square root of the moments). The features are uncorrelated
    and of power 1.
    """
    products = matrix.swapaxes(1, 2) @ matrix
    if moments is None:
        return np.ascontiguousarray(np.linalg.eigh(products)[1][:, :, ::-1][:, :, :rank].swapaxes(1, 2))
    values, vectors = np.linalg.eigh(moments)
    root = np.sqrt(np.maximum(values, values[:, -1:] * 1e-12))[:, None, :]
    whitened = (vectors * root) @ vectors.swapaxes(1, 2)
    directions = np.linalg.eigh(whitened @ products @ whitened)[1][:, :, ::-1][:, :, :rank].swapaxes(1, 2)
    return np.ascontiguousarray(directions @ (vectors / root) @ vectors.swapaxes(1, 2))


def output_basis(matrix: Floats, moments: InputMoments) -> tuple[Floats, Floats]:
    """The principal directions of the output (groups, outputs, outputs), a column each, and the power along each."""
    values, vectors = np.linalg.eigh(moments.times(matrix) @ matrix.swapaxes(1, 2))
    return vectors[:, :, ::-1], np.maximum(values[:, ::-1], 0.0)
