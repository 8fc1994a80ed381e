"""InputMoments: the second moments of what meets a layer's weight, so that an error of weights is one of outputs.

For a change D of the weight as a matrix, ``trace(D second Dᵀ)`` is the mean square of the change of the output about
its mean, which the bias takes up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from math import prod
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from isobit.statistics.layer_rows.gram import Gram
from isobit.statistics.layer_rows.rows import Rows, paired_values

Floats = NDArray[np.float64]

#: Damping in means of the diagonal: so much where there are as many rows as unknowns, less with more rows.
_DAMPING = 0.01
_LEAST, _MOST = 1e-6, 1.0

#: Values of rows that are multiplied at once in float64, and the fewest rows.
_CHUNK, _FEWEST = 1 << 22, 16


@dataclass(frozen=True, eq=False)
class InputMoments:
    """The second moments about the mean of the columns that meet a weight, damped.

    ``second`` (groups, columns, columns) where there are more rows than columns, else the rows themselves, about their
    mean (rows, groups, columns), which are less; ``floor`` (groups,) is the damping, which is in `second` already, and
    ``mean`` (groups, columns). Of neither: every column counts alike, by itself, which is the error of weights.
    """

    second: Floats | None = None
    rows: NDArray[np.float32] | None = None
    floor: Floats | None = None
    mean: Floats | None = None
    _powers: dict[bytes, float] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, rows: Rows | None, unknowns: int) -> InputMoments:
        """The moments about the mean, damped: what data says little or nothing of counts a little all the same.

        Directions that few rows leave open would seem free. The damping shrinks with the rows for each of the
        `unknowns` of an output that are to be learned. Raises DataError for rows that hold NaN or infinity.
        """
        if rows is None:
            return cls()
        values, _ = paired_values(rows, None)
        count, _, columns = values.shape
        share = min(_MOST, max(_LEAST, _DAMPING * unknowns / count))
        second: Floats | None = None
        if count >= columns:
            second, mean = _second(rows)
            floor = share * np.einsum("gcc->g", second) / columns
        else:
            mean = values.mean(axis=0, dtype=np.float64)
            values = values - mean.astype(np.float32)
            floor = share * np.square(values, dtype=np.float64).mean(axis=(0, 2))
        floor = np.where(floor > 0, floor, 1.0)  # inputs that never change: any factors serve, so the nearest weights
        if second is None:
            return cls(None, values, floor, mean)
        return cls(second + floor[:, None, None] * np.eye(columns), None, floor, mean)

    @property
    def is_known(self) -> bool:
        """Whether there is data."""
        return self.second is not None or self.rows is not None

    def _chunks(self) -> Iterator[Floats]:
        """The rows in parts, (groups, rows, columns), divided by the root of their number."""
        assert self.rows is not None
        scale = 1 / np.sqrt(len(self.rows))
        step = max(_FEWEST, _CHUNK // prod(self.rows.shape[1:]))
        for start in range(0, len(self.rows), step):
            yield self.rows[start : start + step].astype(np.float64).transpose(1, 0, 2) * scale

    def on_rows(self, of: Callable[[Floats], Floats]) -> Floats:
        """What `of` makes of the rows, (groups, rows, n), a part of them at a time. For moments that hold rows."""
        return np.concatenate([of(part) for part in self._chunks()], axis=1)

    def powers(self, matrix: Floats) -> Floats:
        """The power of each output of a matrix (groups, n, columns), summed over groups: (n,)."""
        if self.rows is not None and self.floor is not None:
            squares = np.square(self.on_rows(lambda part: part @ matrix.swapaxes(1, 2))).sum(axis=1)
            return np.asarray((squares + self.floor[:, None] * np.square(matrix).sum(axis=2)).sum(axis=0))
        return np.asarray(np.einsum("gnn->n", self.outputs(matrix)))

    def outputs(self, matrix: Floats) -> Floats:
        """Second moments of the outputs of a matrix (groups, n, columns), about their mean: (groups, n, n)."""
        if self.second is not None:
            return np.asarray((matrix @ self.second) @ matrix.swapaxes(1, 2))
        products = matrix @ matrix.swapaxes(1, 2)
        if self.rows is None or self.floor is None:
            return products
        total = products * self.floor[:, None, None]
        for part in self._chunks():
            output = matrix @ part.swapaxes(1, 2)
            total += output @ output.swapaxes(1, 2)
        return total

    def with_features(self, matrix: Floats, basis: Floats) -> Floats:
        """Products of the outputs of a matrix with features (`of_features`): (groups, n, rank * inner)."""
        if self.second is not None:
            return on_outer(matrix @ self.second, basis)
        direct = on_outer(matrix, basis)
        if self.rows is None or self.floor is None:
            return direct
        total = direct * self.floor[:, None, None]
        for part in self._chunks():
            total += (matrix @ part.swapaxes(1, 2)) @ on_outer(part, basis)
        return total

    def power(self, matrix: Floats) -> float:
        """The mean square of the output of a weight (groups, outputs, columns), about its mean, of all outputs.

        Kept by the values of the weight, which each way to split a layer asks for anew.
        """
        key = blake2b(np.ascontiguousarray(matrix).data, digest_size=16).digest()
        if key not in self._powers:
            self._powers[key] = self._power(matrix)
        return self._powers[key]

    def _power(self, matrix: Floats) -> float:
        if self.second is not None:
            return float(np.vdot(matrix @ self.second, matrix))
        power = np.square(matrix).sum(axis=(1, 2))
        if self.rows is None or self.floor is None:
            return float(power.sum())
        of_rows = sum(float(np.square(matrix @ part.swapaxes(1, 2)).sum()) for part in self._chunks())
        return float(power @ self.floor) + of_rows

    def marginal(self, outer: int) -> Floats | None:
        """Columns are `outer` by inner ones: moments of the outer ones (groups, outer, outer), summed over inner."""
        if self.second is not None:
            groups, columns, _ = self.second.shape
            split = self.second.reshape(groups, outer, columns // outer, outer, columns // outer)
            return np.asarray(np.einsum("gajbj->gab", split))
        if self.rows is None or self.floor is None:
            return None
        inner = self.rows.shape[2] // outer
        total: Floats = self.floor[:, None, None] * inner * np.eye(outer)
        for part in self._chunks():
            by_inner = part.reshape(*part.shape[:2], outer, inner).transpose(0, 1, 3, 2)
            flat = by_inner.reshape(part.shape[0], -1, outer)
            total += flat.swapaxes(1, 2) @ flat
        return total

    def of_features(self, basis: Floats) -> Floats:
        """The moments of features: `basis` (groups, rank, outer) on the outer columns, at every inner one.

        (groups, rank * inner, rank * inner), a rank's inner ones together.
        """
        groups, rank, outer = basis.shape
        if self.second is None:
            assert self.rows is not None  # of weights alone the features are known: they are independent
            assert self.floor is not None
            inner = self.rows.shape[2] // outer
            damped = self.floor[:, None, None] * (basis @ basis.swapaxes(1, 2))
            total: Floats = np.einsum("grs,ij->grisj", damped, np.eye(inner))
            total = total.reshape(groups, rank * inner, rank * inner)
            for part in self._chunks():
                features = on_outer(part, basis)
                total += features.swapaxes(1, 2) @ features
            return total
        inner = self.second.shape[1] // outer
        half = basis @ self.second.reshape(groups, outer, inner * outer * inner)
        half = half.reshape(groups, rank * inner, outer, inner).transpose(0, 2, 1, 3)
        both = basis @ half.reshape(groups, outer, rank * inner * inner)
        both = both.reshape(groups, rank, rank * inner, inner).transpose(0, 2, 1, 3)
        return np.ascontiguousarray(both.reshape(groups, rank * inner, rank * inner))


#: Second moments that several methods and choices ask for, with the number of rows that they are of, and the means.
_KNOWN: WeakKeyDictionary[Rows, tuple[int, Floats, Floats]] = WeakKeyDictionary()

#: The largest that are kept, in bytes: about what the rows take.
_KEPT_BYTES = 64 << 20


def _second(rows: Rows) -> tuple[Floats, Floats]:
    """Second moments about the mean, and the mean."""
    known = _KNOWN.get(rows)
    if known is None or known[0] != len(rows):
        gram = Gram.of(rows)
        known = len(rows), gram.centered().second / gram.count, gram.mean
        if known[1].nbytes <= _KEPT_BYTES:
            _KNOWN[rows] = known
    return known[1], known[2]


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
    values, vectors = np.linalg.eigh(moments.outputs(matrix))
    return vectors[:, :, ::-1], np.maximum(values[:, ::-1], 0.0)
