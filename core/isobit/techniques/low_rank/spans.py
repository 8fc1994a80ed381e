"""Spans: features of a layer's input, how much of its output each number of them explains, and weights solved on them.

`Span` works on the moments of the features, for every rank at once; `RowSpan` on the rows of the input, for single
ranks, where there are far fewer rows than features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np

from isobit.techniques.low_rank.input_moments import Floats, InputMoments, on_outer

#: Features whose moments are formed; of more, the rows are worked on. About 170 MB.
MOST_MOMENTS = 4608

#: Numbers of features that are formed at once.
_BLOCK = 1 << 23


class Explains(Protocol):
    """Features of the input: directions `basis` (groups, rank, outer) at every inner column, the first ones first."""

    @property
    def basis(self) -> Floats:
        """The directions."""
        ...

    def explained(self, rank: int) -> Floats:
        """The power of each row of the matrix that the first directions explain, summed over groups: (rows,)."""
        ...

    def solve(self, rank: int, rows: Floats) -> Floats:
        """The least-squares weights on the features of the first directions, for combinations of the matrix's rows."""
        ...


def span_of(matrix: Floats, basis: Floats, moments: InputMoments, ranks: Sequence[int]) -> Explains:
    """The features of a basis for outputs of a matrix (groups, rows, columns); `ranks` are all that are asked for."""
    if moments.rows is not None and takes_rows(basis.shape[1] * (matrix.shape[2] // basis.shape[2])):
        return RowSpan.of(matrix, basis, moments, ranks)
    return Span.of(matrix, basis, moments)


def takes_rows(features: int) -> bool:
    """Whether so many features are too many to form their moments."""
    return features > MOST_MOMENTS


@dataclass(frozen=True, eq=False)
class Span:
    """Of the features' moments: `second` (None: independent, of power 1), and `cross`, the matrix's output by feature.

    `gains` (rank, rows of the matrix) is the power that a direction adds to those before it, summed over groups.
    """

    basis: Floats
    second: Floats | None
    cross: Floats
    gains: Floats

    @classmethod
    def of(cls, matrix: Floats, basis: Floats, moments: InputMoments) -> Span:
        """All ranks of a basis, from one Cholesky factor."""
        cross = moments.with_features(matrix, basis)
        second = moments.of_features(basis) if moments.is_known else None
        along = cross.swapaxes(1, 2) if second is None else _orthogonalised(second, cross, moments.power(matrix))
        rank = basis.shape[1]
        gains = np.square(along).sum(axis=0).reshape(rank, -1, matrix.shape[1]).sum(axis=1)
        return cls(basis, second, cross, gains)

    @cached_property
    def _explained(self) -> Floats:
        return np.pad(self.gains, ((1, 0), (0, 0))).cumsum(axis=0)

    def explained(self, rank: int) -> Floats:
        """What the first directions add one after the other."""
        return np.asarray(self._explained[rank])

    def solve(self, rank: int, rows: Floats) -> Floats:
        """From the moments of the features; where rounding leaves these singular, of least norm."""
        count = rank * (self.cross.shape[2] // self.basis.shape[1])
        target = rows @ self.cross[:, :, :count]
        if self.second is None:
            return target
        second, wanted = self.second[:, :count, :count], target.swapaxes(1, 2)
        try:
            return np.asarray(np.linalg.solve(second, wanted).swapaxes(1, 2))
        except np.linalg.LinAlgError:
            return np.asarray((np.linalg.pinv(second, hermitian=True) @ wanted).swapaxes(1, 2))


@dataclass(frozen=True, eq=False)
class RowSpan:
    """Of the rows X of the input, divided by the root of their number, where the moments would be too large.

    The weights A of features F = X Bᵀ with orthonormal directions B are those with the least error of the output,
    ``|X Wᵀ - F Aᵀ|²``, and, by the damping d, of the weights, ``d |W - A B|²``. With E = X (W - W Bᵀ B)ᵀ, the output
    of what the directions leave out, and K = F Fᵀ of as many columns as rows, that is
    ``A = W Bᵀ + Eᵀ (K + d)⁻¹ F``, of error ``d Eᵀ (K + d)⁻¹ E + d |W - W Bᵀ B|²`` (ridge regression in its dual form:
    Saunders et al., ICML 1998). K and E follow from rank to rank.
    """

    basis: Floats
    matrix: Floats
    moments: InputMoments
    _known: dict[int, Floats] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, matrix: Floats, basis: Floats, moments: InputMoments, ranks: Sequence[int]) -> RowSpan:
        """The errors of `ranks`; the directions are made orthonormal, each rank's span as it was."""
        orthonormal = np.linalg.qr(basis.swapaxes(1, 2))[0].swapaxes(1, 2)
        span = cls(np.ascontiguousarray(orthonormal), matrix, moments)
        span._explain(sorted(set(ranks)))
        return span

    def explained(self, rank: int) -> Floats:
        """What is not left over; one that was not asked for at first is worked out by itself."""
        if rank not in self._known:
            self._explain([rank])
        return self._known[rank]

    def _explain(self, ranks: Sequence[int]) -> None:
        floor = self._floor
        power = self.moments.powers(self.matrix)
        state, before = self._whole(), 0
        for rank in ranks:
            self._grow(state, before, rank)
            solved = np.linalg.solve(state.kernel + floor * np.eye(state.kernel.shape[1]), state.left)
            missing = (state.left * solved).sum(axis=1) + state.weights_left
            self._known[rank] = np.maximum(power - (floor[:, 0] * missing).sum(axis=0), 0.0)
            before = rank

    def solve(self, rank: int, rows: Floats) -> Floats:
        """In the dual form; the features are formed a second time, so that they are never there together."""
        state = self._whole()
        self._grow(state, 0, rank)
        dual = np.linalg.solve(
            state.kernel + self._floor * np.eye(state.kernel.shape[1]), state.left @ rows.swapaxes(1, 2)
        )
        parts = []
        for start, end in self._blocks(0, rank):
            along = rows @ on_outer(self.matrix, self.basis[:, start:end])
            parts.append(along + dual.swapaxes(1, 2) @ self._features(start, end))
        return np.concatenate(parts, axis=2)

    @property
    def _floor(self) -> Floats:
        assert self.moments.floor is not None
        return self.moments.floor[:, None, None]

    def _whole(self) -> _State:
        output = self.moments.on_rows(lambda part: part @ self.matrix.swapaxes(1, 2))
        kernel = np.zeros((*output.shape[:2], output.shape[1]))
        return _State(kernel, output, np.square(self.matrix).sum(axis=2))

    def _grow(self, state: _State, before: int, rank: int) -> None:
        """Let the directions from `before` to `rank` come to those that there are."""
        for start, end in self._blocks(before, rank):
            features = self._features(start, end)
            along = on_outer(self.matrix, self.basis[:, start:end])
            state.kernel += features @ features.swapaxes(1, 2)
            state.left -= features @ along.swapaxes(1, 2)
            state.weights_left -= np.square(along).sum(axis=2)
        np.maximum(state.weights_left, 0.0, out=state.weights_left)

    def _features(self, start: int, end: int) -> Floats:
        """(groups, rows, directions * inner)."""
        return self.moments.on_rows(lambda part: on_outer(part, self.basis[:, start:end]))

    def _blocks(self, start: int, end: int) -> list[tuple[int, int]]:
        assert self.moments.rows is not None
        one = self.moments.rows.shape[0] * self.matrix.shape[0] * (self.matrix.shape[2] // self.basis.shape[2])
        step = max(1, _BLOCK // one)
        return [(first, min(first + step, end)) for first in range(start, end, step)]


@dataclass(eq=False)
class _State:
    """Of the directions so far: K, the output that is left (groups, rows, rows of the matrix), weights' squares."""

    kernel: Floats
    left: Floats
    weights_left: Floats


def _orthogonalised(second: Floats, cross: Floats, power: float) -> Floats:
    """inverse(L) crossᵀ for the Cholesky factor L of the features' moments: output along features made orthogonal.

    The lower left block of the Cholesky factor of both together is that, transposed, so no system is solved. `power`
    bounds what features can explain.
    """
    groups, rows, count = cross.shape
    joined = np.zeros((groups, count + rows, count + rows))
    joined[:, :count, :count], joined[:, count:, :count] = second, cross
    joined[:, :count, count:] = cross.swapaxes(1, 2)
    largest = np.einsum("gcc->gc", second).max(axis=1)[:, None]
    diagonal = np.arange(count + rows)
    joined[:, diagonal[count:], diagonal[count:]] = 2 * power + np.finfo(np.float64).tiny
    for shift in (0.0, 1e-12, 1e-9, 1e-6, 1e-3):  # rounding may have left the moments indefinite
        joined[:, diagonal[:count], diagonal[:count]] += shift * largest
        try:
            return np.asarray(np.linalg.cholesky(joined)[:, count:, :count].swapaxes(1, 2))
        except np.linalg.LinAlgError:
            continue
    return np.zeros((groups, count, rows))
