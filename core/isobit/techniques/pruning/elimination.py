"""Elimination: channels leave one after the other, each time the one whose loss the others make up for best.

Source: LeCun et al., "Optimal Brain Damage", NIPS 1989, and Hassibi and Stork, "Second order derivatives for network
pruning: Optimal Brain Surgeon", NIPS 1992, for blocks of inputs of a linear map with all of its outputs: the error of a
removal with all other weights solved again is exact, not expanded. He et al., "Channel Pruning for Accelerating Very
Deep Neural Networks", ICCV 2017, state the problem and relax it to LASSO; ThiNet, ICCV 2017, removes greedily without
solving again between removals. Taking channels out of the inverse in blocks is a Cholesky factorization of it, which is
backward stable as long as the inverse is symmetric and well enough conditioned: Higham, "Accuracy and Stability of
Numerical Algorithms", 2002, chapter 10. Columns are brought to one scale for that (van der Sluis 1969).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
#: Of blocks B and what is right of them a V with Vᵀ V = rightᵀ B⁻¹ right.
Root = Callable[[Floats, Floats], Floats]

#: Of more channels than this, a share is removed at once.
_ONE_BY_ONE = 64
_AT_ONCE = 16

#: What is added to moments of columns whose own are 1: it bounds the condition by the number of columns times 1e8.
_RIDGE = 1e-8


@dataclass(frozen=True, eq=False)
class Reader:
    """A linear map of inputs: finite moments (columns, columns), weight (outputs, columns).

    Moments may be of any rank and scale: what is zero or less by rounding says nothing, and costs nothing. `channel`
    numbers each column's channel, -1 for one that stays. Errors count as shares of `power`, which is that of the whole
    `layer` where a map is one group of it.
    """

    moments: Floats
    weight: Floats
    channel: Indices
    power: float
    layer: str = ""

    def state(self) -> _State:
        """With all of its channels."""
        return _State(self)

    def without(self, gone: Indices) -> tuple[Floats, float]:
        """The weight of least error that is zero in the columns `gone`, and its error, a mean square of outputs."""
        kept = np.setdiff1d(np.arange(self.weight.shape[1]), gone)
        wanted = self.moments[kept] @ self.weight.T
        columns = np.linalg.solve(self.moments[np.ix_(kept, kept)], wanted)
        new = np.zeros_like(self.weight)
        new[:, kept] = columns.T
        # least squares leave what they do not make of the power
        whole = float(np.vdot(self.weight @ self.moments, self.weight))
        return new, whole - float((columns * wanted).sum())


class Left(Protocol):
    """What is left of a map while channels leave it."""

    def losses(self, count: int) -> Floats:
        """By channel what the output loses without it, as a share of its power."""
        ...

    def remove(self, gone: Indices) -> float:
        """Take channels out, the others made up; what the output loses by it."""
        ...


class Loses(Protocol):
    """A linear map whose channels can go; its errors count for its `layer`."""

    @property
    def layer(self) -> str:
        """The layer that it is a part of."""
        ...

    def state(self) -> Left:
        """With all of its channels."""
        ...


def eliminated(readers: Sequence[Loses], count: int) -> tuple[list[int], list[float]]:
    """The order in which `count` channels leave, all but one, and the error of all layers after each removal.

    A channel goes for the least sum of what the layers lose, with all weights of the channels that are left solved
    again. Errors of several layers are what is lost of the product of the powers that they keep.
    """
    lost = dict.fromkeys((reader.layer for reader in readers), 0.0)
    states = [reader.state() for reader in readers]
    left = np.arange(count)
    order: list[int] = []
    errors: list[float] = []
    while len(left) > 1:
        scores = np.zeros(count)
        for state in states:
            scores += state.losses(count)
        at_once = 1 if len(left) <= _ONE_BY_ONE else -(-len(left) // _AT_ONCE)
        gone = left[np.argsort(scores[left], kind="stable")[: min(at_once, len(left) - 1)]]
        order += gone.tolist()
        for reader, state in zip(readers, states, strict=True):
            lost[reader.layer] += state.remove(gone)
        start = errors[-1] if errors else 0.0
        total = 1 - math.prod(1 - min(share, 1.0) for share in lost.values())
        parts = scores[gone] if scores[gone].sum() > 0 else np.ones(len(gone))
        shares = np.cumsum(parts) / parts.sum()
        errors += (start + (total - start) * shares).tolist()  # exact where a step ends, in proportion between
        left = np.setdiff1d(left, gone, assume_unique=True)
    return order, errors


class _State:
    """What is left of a reader: the inverse of its moments, its weights (columns, outputs) as solved so far.

    Columns count in units of their root mean square. `columns` are those of the reader that are left, those of a
    channel side by side.
    """

    def __init__(self, reader: Reader) -> None:
        self.power, self._moments = reader.power, reader.moments
        self.columns = np.argsort(reader.channel, kind="stable")
        self.channel = reader.channel[self.columns]
        square = np.diagonal(reader.moments)
        self._unit = np.zeros(len(square))  # columns without power: none of what they are read as counts
        np.divide(1.0, np.sqrt(np.maximum(square, 0.0)), out=self._unit, where=square > 0)
        self._wanted = self._unit[:, None] * (reader.moments @ reader.weight.T)
        self._renew()

    def _renew(self) -> None:
        """Solve for the columns that are left from their moments, so that no rounding is older than this."""
        unit = self._unit[self.columns]
        moments = self._moments[np.ix_(self.columns, self.columns)]
        moments *= unit
        moments *= unit[:, None]
        np.fill_diagonal(moments, 1 + _RIDGE)
        self.inverse = inverse_of(moments)
        self.weight = self.inverse @ self._wanted[self.columns]
        self._renewed = len(self.columns)

    def losses(self, count: int) -> Floats:
        """By channel what the output loses without it."""
        return by_root(lambda root: self._losses(count, root), self._renew)

    def _losses(self, count: int, root: Root) -> Floats:
        loss = np.zeros(count)
        channels, starts, widths = np.unique(self.channel, return_index=True, return_counts=True)
        for width in np.unique(widths):  # the same for all channels but for those that are read twice
            chosen = (widths == width) & (channels >= 0)
            if not chosen.any():
                continue
            columns = starts[chosen, None] + np.arange(width)
            blocks = self.inverse[columns[:, :, None], columns[:, None, :]]
            loss[channels[chosen]] += np.square(root(blocks, self.weight[columns])).sum((1, 2))
        return loss / self.power

    def remove(self, gone: Indices) -> float:
        """Take channels out, the others made up; what the output loses by it."""
        goes = np.isin(self.channel, gone)
        if not goes.any():
            return 0.0
        made = by_root(lambda root: self._made(goes, root), self._renew)
        outputs, stays = self.weight.shape[1], np.flatnonzero(~goes)
        self.columns, self.channel = self.columns[stays], self.channel[stays]
        if 2 * len(stays) <= self._renewed:  # a matrix of half the size takes an eighth of the time to invert
            self._renew()
        else:
            across = made[:, outputs:]
            self.weight = self.weight[stays] - across.T @ made[:, :outputs]
            self.inverse = self.inverse[np.ix_(stays, stays)]
            self.inverse -= across.T @ across  # of one array: symmetric to the last bit
        return float(np.square(made[:, :outputs]).sum()) / self.power

    def _made(self, goes: NDArray[np.bool_], root: Root) -> Floats:
        """What goes, by a root of its block of the inverse: its weights and, behind them, its part in the others."""
        rows = self.inverse[goes]
        return root(rows[:, goes], np.concatenate([self.weight[goes], rows[:, ~goes]], 1))


def whitened(blocks: Floats, right: Floats) -> Floats:
    """V with Vᵀ V = rightᵀ blocks⁻¹ right. Raises LinAlgError where a block is not positive definite."""
    return np.asarray(np.linalg.solve(np.linalg.cholesky(blocks), right))


def raised(blocks: Floats, right: Floats) -> Floats:
    """The same for any symmetric blocks: eigenvalues that are lost in rounding are raised to what rounding leaves."""
    values, vectors = np.linalg.eigh(blocks)
    least = blocks.shape[-1] * np.finfo(np.float64).eps * np.abs(values).max(-1, keepdims=True)
    root = np.sqrt(np.maximum(values, np.maximum(least, np.finfo(np.float64).tiny)))
    return np.asarray(vectors.swapaxes(-1, -2) @ right / root[..., None])


def by_root(solve: Callable[[Root], Floats], renew: Callable[[], None]) -> Floats:
    """What `solve` makes by `whitened`; where a block has lost its definiteness, by `raised` behind `renew`."""
    try:
        return solve(whitened)
    except np.linalg.LinAlgError:
        renew()
        return solve(raised)


def inverse_of(moments: Floats) -> Floats:
    """The inverse of moments of columns of one scale, symmetric; directions below the ridge count as the ridge."""
    from scipy.linalg.lapack import dpotrf, dpotri  # takes a while to import, for those who prune alone

    if not len(moments):  # a group of a convolution whose inputs are all gone
        return moments
    factor, failed = dpotrf(moments.T, lower=1)
    if failed:
        values, vectors = np.linalg.eigh(moments)
        root = vectors / np.sqrt(np.maximum(values, _RIDGE))
        return np.asarray(root @ root.T)
    found, _ = dpotri(factor, lower=1, overwrite_c=1)
    half = np.tril(found, -1)
    whole = half + half.T
    np.fill_diagonal(whole, np.diagonal(found))
    return np.asarray(whole)
