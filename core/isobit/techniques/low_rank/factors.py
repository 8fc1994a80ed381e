"""Factors of a layer's weight with the least error of its output: by width, by output channels, and Tucker's.

Weights are (groups, outputs of a group, inputs of a group, *kernel) in float64. Every factor after a given basis is
solved in closed form, by least squares on the moments of the inputs; so the error of each rank is known without it.

Sources: Zhang et al., IEEE TPAMI 2016, section 3.1 (outputs' principal directions); Jaderberg et al., BMVC 2014
(separable filters, with reconstruction of the output); Kim et al., ICLR 2016 (Tucker-2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Protocol

import numpy as np

from isobit.techniques.low_rank.input_moments import Floats, InputMoments, input_basis, output_basis
from isobit.techniques.low_rank.spans import Explains, span_of

Ranks = tuple[int, ...]


class Factors(Protocol):
    """What is known of the factors of one weight, for all ranks up to those that were asked for."""

    def error(self, ranks: Ranks) -> float:
        """The power of the error of the output at these ranks of each group."""
        ...

    def weights(self, ranks: Ranks) -> list[Floats]:
        """The factors of these ranks, first to last, as weights of layers."""
        ...

    def product(self, ranks: Ranks) -> Floats:
        """The weight that they make together, as a matrix (groups, outputs, columns)."""
        ...


@dataclass(frozen=True, eq=False)
class OutputFactors:
    """A layer with few outputs, the principal directions of the output, and a linear map of them: none does better."""

    weight: Floats
    moments: InputMoments

    @cached_property
    def _basis(self) -> tuple[Floats, Floats]:
        return output_basis(as_matrix(self.weight), self.moments)

    def error(self, ranks: Ranks) -> float:
        """What lies in the directions that are left out."""
        return float(self._basis[1][:, ranks[0] :].sum())

    def weights(self, ranks: Ranks) -> list[Floats]:
        """(groups, rank, inputs, *kernel) and (groups, outputs, rank)."""
        basis = self._basis[0][:, :, : ranks[0]]
        narrow = basis.swapaxes(1, 2) @ as_matrix(self.weight)
        return [narrow.reshape(*narrow.shape[:2], *self.weight.shape[2:]), basis]

    def product(self, ranks: Ranks) -> Floats:
        """The weight, projected on the first directions of its output."""
        narrow, basis = self.weights(ranks)
        return np.asarray(basis @ as_matrix(narrow))


@dataclass(frozen=True, eq=False)
class WidthFactors:
    """Filters of height x 1, and filters of 1 x width on their output.

    The vertical filters span what the weight needs of each column of the input, taken by itself; the horizontal ones
    are then solved on whole windows. With `compare`, the span that weights alone suggest is tried beside that of data.
    """

    weight: Floats  # (groups, outputs, inputs, height, width)
    moments: InputMoments
    wanted: Sequence[int]  # all ranks that are asked for
    compare: bool = True

    @cached_property
    def _spans(self) -> list[Explains]:
        groups, outputs, inputs, height, width = self.weight.shape
        by_column = self.weight.transpose(0, 1, 4, 2, 3).reshape(groups, outputs * width, inputs * height)
        marginal = self.moments.marginal(inputs * height)
        suggested = [marginal, None] if self.compare and marginal is not None else [marginal]
        matrix = as_matrix(self.weight)
        bases = [input_basis(by_column, each, max(self.wanted)) for each in suggested]
        return [span_of(matrix, basis, self.moments, self.wanted) for basis in bases]

    def error(self, ranks: Ranks) -> float:
        """The smaller of the spans' errors."""
        best = max(float(span.explained(ranks[0]).sum()) for span in self._spans)
        return max(self.moments.power(as_matrix(self.weight)) - best, 0.0)

    def weights(self, ranks: Ranks) -> list[Floats]:
        """(groups, rank, inputs, height, 1) and (groups, outputs, rank, 1, width)."""
        groups, outputs, inputs, height, width = self.weight.shape
        rank = ranks[0]
        span = max(self._spans, key=lambda each: float(each.explained(rank).sum()))
        second = span.solve(rank, np.eye(outputs)[None])
        return [
            span.basis[:, :rank].reshape(groups, rank, inputs, height, 1),
            second.reshape(groups, outputs, rank, 1, width),
        ]

    def product(self, ranks: Ranks) -> Floats:
        """The sum over ranks of the outer products."""
        vertical, horizontal = self.weights(ranks)
        return as_matrix(np.einsum("grchx,goryw->gochw", vertical, horizontal, optimize=True))


@dataclass(frozen=True, eq=False)
class TuckerFactors:
    """A 1x1 layer of few outputs, the kernel on them, and a 1x1 layer: ranks of inputs and of outputs.

    A rank that is all of the inputs or outputs needs no layer: its factor is left out.
    """

    weight: Floats  # (groups, outputs, inputs, *kernel)
    moments: InputMoments
    wanted: Sequence[int]  # all ranks of inputs that are asked for, where they are not all of them
    compare: bool = True  # the span that weights alone suggest with that of data

    @cached_property
    def _outputs(self) -> tuple[Floats, Floats]:
        return output_basis(as_matrix(self.weight), self.moments)

    @cached_property
    def _spans(self) -> list[Explains]:
        groups, outputs, inputs = self.weight.shape[:3]
        by_tap = self.weight.reshape(groups, outputs, inputs, -1).swapaxes(2, 3).reshape(groups, -1, inputs)
        marginal = self.moments.marginal(inputs)
        suggested = [marginal, None] if self.compare and marginal is not None else [marginal]
        matrix = self._outputs[0].swapaxes(1, 2) @ as_matrix(self.weight)  # the output along its principal directions
        bases = [input_basis(by_tap, each, max(self.wanted)) for each in suggested]
        return [span_of(matrix, basis, self.moments, self.wanted) for basis in bases]

    def error(self, ranks: Ranks) -> float:
        """The smaller of the spans' errors; with all inputs, what lies in the directions of the output left out."""
        first, last = ranks
        if first == self.weight.shape[2]:
            return float(self._outputs[1][:, last:].sum())
        best = max(float(span.explained(first)[:last].sum()) for span in self._spans)
        return max(self.moments.power(as_matrix(self.weight)) - best, 0.0)

    def weights(self, ranks: Ranks) -> list[Floats]:
        """(groups, rank in, inputs), (groups, rank out, rank in, *kernel), (groups, outputs, rank out)."""
        groups, outputs, inputs, *kernel = self.weight.shape
        first, last = ranks
        basis = self._outputs[0]
        some = basis[:, :, :last] if last < outputs else np.broadcast_to(np.eye(outputs), basis.shape)
        if first == inputs:
            core = some.swapaxes(1, 2) @ as_matrix(self.weight)
            before: list[Floats] = []
        else:
            span = max(self._spans, key=lambda each: float(each.explained(first)[:last].sum()))
            core = span.solve(first, some.swapaxes(1, 2) @ basis)
            before = [span.basis[:, :first]]
        return [*before, core.reshape(groups, last, first, *kernel), *([some] if last < outputs else [])]

    def product(self, ranks: Ranks) -> Floats:
        """The core, read along the directions of the inputs and written along those of the output."""
        factors = self.weights(ranks)
        outputs, inputs = self.weight.shape[1:3]
        core = factors[0] if ranks[0] == inputs else factors[1]
        core = core.reshape(*core.shape[:3], -1)
        if ranks[0] < inputs:
            core = np.einsum("gsrk,grc->gsck", core, factors[0], optimize=True)
        core = as_matrix(core)
        return core if ranks[1] == outputs else np.asarray(factors[-1] @ core)


def as_matrix(weight: Floats) -> Floats:
    """(groups, outputs, columns)."""
    return weight.reshape(*weight.shape[:2], -1)


def balanced(factors: Sequence[Floats]) -> list[Floats]:
    """The same product, each channel between two factors scaled so that both have weights of the same norm there."""
    scaled = [np.array(factor) for factor in factors]
    for first, second in pairwise(scaled):
        rows = np.sqrt(np.square(first).reshape(*first.shape[:2], -1).sum(axis=2))
        columns = np.sqrt(np.square(second).swapaxes(1, 2).reshape(second.shape[0], second.shape[2], -1).sum(axis=2))
        known = (rows > 0) & (columns > 0)
        factor = np.sqrt(np.divide(columns, rows, out=np.ones_like(rows), where=known))
        factor[~known] = 1.0
        first *= factor.reshape(*factor.shape, *(1,) * (first.ndim - 2))
        second /= factor[:, None].reshape(factor.shape[0], 1, factor.shape[1], *(1,) * (second.ndim - 3))
    return scaled
