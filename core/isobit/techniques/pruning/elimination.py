"""Elimination: channels leave one after the other, each time the one whose loss the others make up for best.

Source: LeCun et al., "Optimal Brain Damage", NIPS 1989, and Hassibi and Stork, "Second order derivatives for network
pruning: Optimal Brain Surgeon", NIPS 1992, for blocks of inputs of a linear map with all of its outputs: the error of a
removal with all other weights solved again is exact, not expanded. He et al., "Channel Pruning for Accelerating Very
Deep Neural Networks", ICCV 2017, state the problem and relax it to LASSO; ThiNet, ICCV 2017, removes greedily without
solving again between removals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

#: Of more channels than this, a share is removed at once.
_ONE_BY_ONE = 64
_AT_ONCE = 16

#: Matrices up to this size are inverted at once. A matrix is copied without what is gone once this share of it is left.
_HALVED, _COMPACT = 512, 0.75

#: The number of a column whose channel is gone.
_GONE = -2


@dataclass(frozen=True, eq=False)
class Reader:
    """A linear map of inputs: moments (columns, columns) that are positive definite, weight (outputs, columns).

    `channel` numbers each column's channel, -1 for one that stays. Errors count as shares of `power`, which is that of
    the whole `layer` where a map is one group of it.
    """

    moments: Floats
    weight: Floats
    channel: Indices
    power: float
    layer: str = ""


def eliminated(readers: Sequence[Reader], count: int) -> tuple[list[int], list[float]]:
    """The order in which `count` channels leave, all but one, and the error of all layers after each removal.

    A channel goes for the least sum of what the layers lose, with all weights of the channels that are left solved
    again. Errors of several layers are what is lost of the product of the powers that they keep.
    """
    lost = dict.fromkeys((reader.layer for reader in readers), 0.0)
    states = [_State.of(reader) for reader in readers]
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


@dataclass
class _State:
    """What is left of a reader: the inverse of its moments, its weights (columns, outputs) as solved so far."""

    inverse: Floats
    weight: Floats
    channel: Indices
    power: float

    @classmethod
    def of(cls, reader: Reader) -> _State:
        order = np.argsort(reader.channel, kind="stable")  # the columns of a channel side by side
        moments = reader.moments[np.ix_(order, order)]
        return cls(_inverse(moments), reader.weight.T[order], reader.channel[order], reader.power)

    def losses(self, count: int) -> Floats:
        """By channel what the output loses without it."""
        loss = np.zeros(count)
        channels, starts, widths = np.unique(self.channel, return_index=True, return_counts=True)
        for width in np.unique(widths):  # the same for all channels but for those that are read twice
            chosen = (widths == width) & (channels >= 0)
            if not chosen.any():
                continue
            columns = starts[chosen, None] + np.arange(width)
            blocks = self.inverse[columns[:, :, None], columns[:, None, :]]
            weights = self.weight[columns]
            loss[channels[chosen]] += (weights * np.linalg.solve(blocks, weights)).sum((1, 2))
        return np.maximum(loss, 0.0) / self.power

    def remove(self, gone: Indices) -> float:
        """Take channels out, the others made up; what the output loses by it."""
        columns = np.flatnonzero(np.isin(self.channel, gone))
        if not columns.size:
            return 0.0
        weights, across = self.weight[columns], self.inverse[:, columns]
        solved = np.linalg.solve(self.inverse[np.ix_(columns, columns)], np.concatenate([weights, across.T], 1))
        outputs = weights.shape[1]
        loss = float((weights * solved[:, :outputs]).sum(dtype=np.float64))
        self.weight -= across @ solved[:, :outputs]
        self.inverse -= across @ solved[:, outputs:]
        self.channel[columns] = _GONE
        stays = np.flatnonzero(self.channel != _GONE)
        if len(stays) < _COMPACT * len(self.channel):  # not each time: to copy the matrix takes as long as to update it
            self.inverse = np.ascontiguousarray(self.inverse[np.ix_(stays, stays)])
            self.weight, self.channel = self.weight[stays], self.channel[stays]
        return max(0.0, loss) / self.power  # rounding may leave less than nothing of a channel that says nothing


def _inverse(matrix: Floats) -> Floats:
    """The inverse of a positive definite matrix by halves: half the work of a general one, all of it products."""
    if len(matrix) <= _HALVED:
        return np.asarray(np.linalg.inv(matrix), np.float64)
    half = len(matrix) // 2
    first, across = _inverse(matrix[:half, :half]), matrix[:half, half:]
    made = first @ across
    second = _inverse(matrix[half:, half:] - across.T @ made)
    result = np.empty_like(matrix)
    result[half:, half:] = second
    result[:half, half:] = -(made @ second)
    result[half:, :half] = result[:half, half:].T
    result[:half, :half] = first - result[:half, half:] @ made.T
    return result
