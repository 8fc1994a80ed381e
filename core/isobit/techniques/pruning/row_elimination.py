"""Elimination by rows: what `isobit.techniques.pruning.elimination` does by moments, for maps of many more inputs.

With rows X, their columns F of the channels that are left and damping d, the inverse of the damped moments is
``(1 - Fᵀ P F) / d`` for ``P = (d + F Fᵀ)⁻¹``, which has as many columns as there are rows (Woodbury 1950; the dual form
of ridge regression: Saunders et al., ICML 1998). So only its blocks of single channels are formed, and the weights
that make up for those that are gone are ``W + Fᵀ P E``, for the output E of what is gone. Columns count in units of the
root of d.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isobit.techniques.pruning.elimination import Floats, Indices, Root, by_root, inverse_of, whitened

#: Values of rows that are worked on at once in float64.
_BLOCK = 1 << 22


@dataclass(frozen=True, eq=False)
class RowReader:
    """A linear map of known inputs: finite `rows` (rows, columns), weight (outputs, columns), `floor` the damping.

    The mean square of what meets the map is ``rowsᵀ rows`` by the number of rows, and `floor` in each column. The rest
    is that of `isobit.techniques.pruning.elimination.Reader`.
    """

    rows: NDArray[np.float32]
    floor: float
    weight: Floats
    channel: Indices
    power: float
    layer: str = ""

    def state(self) -> RowState:
        """With all of its channels."""
        return RowState(self)

    def features(self, columns: Indices) -> Floats:
        """These columns in units of the damping: (rows, columns)."""
        return np.asarray(self.rows[:, columns].astype(np.float64) / np.sqrt(self.floor * len(self.rows)))

    def parts(self, columns: Indices) -> Iterator[Indices]:
        """So many of the columns at a time that what is made of them stays small."""
        step = max(1, _BLOCK // len(self.rows))
        for start in range(0, len(columns), step):
            yield columns[start : start + step]

    def kernel(self, columns: Indices) -> Floats:
        """``1 + F Fᵀ``, (rows, rows)."""
        total = np.eye(len(self.rows))
        for part in self.parts(columns):
            features = self.features(part)
            total += features @ features.T
        return total

    def output(self, columns: Indices) -> Floats:
        """What these columns make of the rows, (rows, outputs)."""
        total = np.zeros((len(self.rows), len(self.weight)))
        for part in self.parts(columns):
            total += self.features(part) @ self.weight[:, part].T
        return total

    def without(self, gone: Indices) -> tuple[Floats, float]:
        """The weight of least error that is zero in the columns `gone`, and its error, a mean square of outputs."""
        kept = np.setdiff1d(np.arange(self.weight.shape[1]), gone)
        output = self.output(gone)
        dual = np.linalg.solve(self.kernel(kept), output)
        new = np.zeros_like(self.weight)
        for part in self.parts(kept):
            new[:, part] = self.weight[:, part] + dual.T @ self.features(part)
        return new, self.floor * float((output * dual).sum() + np.square(self.weight[:, gone]).sum())


@dataclass(eq=False)
class _Channels:
    """Channels of the same number of columns: (channels,), (channels, width), blocks of the inverse, weights so far."""

    channels: Indices
    columns: Indices
    blocks: Floats
    weights: Floats

    def stay(self, stays: NDArray[np.bool_]) -> None:
        self.channels, self.columns = self.channels[stays], self.columns[stays]
        self.blocks, self.weights = self.blocks[stays], self.weights[stays]


class RowState:
    """What is left of a reader: P, for each channel its block of ``1 - Fᵀ P F``, and its weights as solved so far."""

    def __init__(self, reader: RowReader) -> None:
        self._reader = reader
        self._always = np.flatnonzero(reader.channel < 0)
        outputs = len(reader.weight)
        order = np.argsort(reader.channel, kind="stable")
        order = order[reader.channel[order] >= 0]
        channels, starts, widths = np.unique(reader.channel[order], return_index=True, return_counts=True)
        self._sets = []
        for width in np.unique(widths):  # the same for all channels but for those that are read twice
            chosen = np.flatnonzero(widths == width)
            columns = order[starts[chosen, None] + np.arange(width)]
            blocks, weights = np.zeros((len(chosen), width, width)), np.zeros((len(chosen), width, outputs))
            self._sets.append(_Channels(channels[chosen], columns, blocks, weights))
        self._gone = np.zeros((len(reader.rows), outputs))  # the output of what is gone
        self._gone_square = 0.0
        self._renew()

    def losses(self, count: int) -> Floats:
        """By channel what the output loses without it."""
        return by_root(lambda root: self._losses(count, root), self._renew)

    def _losses(self, count: int, root: Root) -> Floats:
        loss = np.zeros(count)
        for each in self._sets:
            loss[each.channels] += np.square(root(each.blocks, each.weights)).sum((1, 2))
        return loss * (self._reader.floor / self._reader.power)

    def remove(self, gone: Indices) -> float:
        """Take channels out, the others made up; what the output loses by it."""
        goes = [np.isin(each.channels, gone) for each in self._sets]
        columns = np.concatenate([each.columns[some].reshape(-1) for each, some in zip(self._sets, goes, strict=True)])
        if not len(columns):
            return 0.0
        before = self._error()
        weights = [each.weights[some] for each, some in zip(self._sets, goes, strict=True)]
        weight = np.concatenate([each.reshape(-1, each.shape[2]) for each in weights])
        self._gone += self._reader.output(columns)
        self._gone_square += float(np.square(self._reader.weight[:, columns]).sum())
        for each, some in zip(self._sets, goes, strict=True):
            each.stay(~some)
        self._count -= len(columns)
        # a product with as many columns as rows costs as much as all of it anew, and rounding does not grow old
        if len(columns) >= len(self._reader.rows) or 2 * self._count <= self._renewed:
            self._renew()
        else:
            self._follow(columns, weight)
        return max(self._error() - before, 0.0) / self._reader.power

    def _error(self) -> float:
        """Of the output by now: what least squares leave of the output of what is gone, and of its weights."""
        left = float((self._gone * (self._inverse @ self._gone)).sum())
        return self._reader.floor * (left + self._gone_square)

    def _follow(self, columns: Indices, weight: Floats) -> None:
        """Bring the inverse, the blocks and the weights up to date with columns that are gone."""
        features = self._reader.features(columns)
        across = self._inverse @ features
        block = np.eye(len(columns)) - features.T @ across
        right = np.concatenate([weight, across.T], axis=1)
        try:
            made = whitened(block, right)
        except np.linalg.LinAlgError:
            self._renew()
            return
        outputs = weight.shape[1]
        u, v = made[:, :outputs], np.ascontiguousarray(made[:, outputs:].T)
        self._inverse += v @ v.T  # of one array: symmetric to the last bit
        for each, start, end, some in self._each():
            shift = (some.T @ v).reshape(end - start, -1, len(columns))
            each.blocks[start:end] -= shift @ shift.swapaxes(1, 2)
            each.weights[start:end] += shift @ u

    def _renew(self) -> None:
        """Everything anew from the columns that are left."""
        columns = np.concatenate([self._always, *(each.columns.reshape(-1) for each in self._sets)])
        self._inverse = inverse_of(self._reader.kernel(columns))
        self._count = self._renewed = len(columns)
        dual = self._inverse @ self._gone
        for each, start, end, some in self._each():
            width = each.columns.shape[1]
            left, right = (
                x.reshape(len(x), -1, width).transpose(1, 2, 0) for x in (some, self._inverse @ some)
            )  # (channels, width, rows)
            each.blocks[start:end] = np.eye(width) - left @ right.swapaxes(1, 2)
            given = self._reader.weight[:, each.columns[start:end]].transpose(1, 2, 0)
            each.weights[start:end] = given + (some.T @ dual).reshape(given.shape)

    def _each(self) -> Iterator[tuple[_Channels, int, int, Floats]]:
        """Channels from one to another of a set, and their columns of the rows: some at a time."""
        for each in self._sets:
            step = max(1, _BLOCK // (len(self._reader.rows) * each.columns.shape[1]))
            for start in range(0, len(each.channels), step):
                end = min(start + step, len(each.channels))
                yield each, start, end, self._reader.features(each.columns[start:end].reshape(-1))
