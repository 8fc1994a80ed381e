"""Weights set to zero in a pattern, column after column, the rest of each row made up for what went.

Source: Frantar and Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", ICML 2023,
algorithm 1: the masks of a block of columns are chosen from the weights as they are by then. It makes up for a column
by those behind it alone; the weights that stay are solved once more, by conjugate gradients for all rows at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isobit.errors import FormatError

Floats = NDArray[np.float64]

#: Columns whose mask is chosen together where a share of all weights goes, and that are updated by themselves.
_BLOCK = 128

#: Steps of conjugate gradients, and those of weights whose step takes more multiplications than so many.
_STEPS, _STEPS_OF_LARGE, _LARGE = 40, 8, 1 << 30
_TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True)
class Pattern:
    """`zeros` of every `group` neighbours are zero; without a group the `share` of least worth is."""

    zeros: int = 0
    group: int = 0
    share: float = 0.0

    @classmethod
    def of(cls, text: str) -> Pattern:
        """``"2:4"`` (two of four stay) or ``"50%"`` (half of all is zero). Raises FormatError."""
        kept, colon, group = text.partition(":")
        try:
            if colon and 0 < int(kept) < int(group):
                return cls(int(group) - int(kept), int(group))
            if text.endswith("%") and 0 < float(text[:-1]) < 100:
                return cls(share=float(text[:-1]) / 100)
        except ValueError:
            pass
        raise FormatError(
            f"{text!r} is no pattern of zeros: write '2:4' where two of each four weights stay, or '50%' where that "
            "share of all is zero"
        )

    @property
    def step(self) -> int:
        """Columns whose mask is chosen at once."""
        return self.group or _BLOCK

    def stays(self, worth: Floats) -> NDArray[np.bool_]:
        """Which of these columns (rows, columns) stay in each row, by their worth; equal ones by their place."""
        columns = worth.shape[1]
        if self.group:
            order = np.argsort(worth, axis=1, kind="stable")
            stays = np.ones(worth.shape, np.bool_)
            np.put_along_axis(stays, order[:, : self.zeros], False, axis=1)
            return stays
        count = round(self.share * worth.shape[0] * columns)
        least = np.argsort(worth, axis=None, kind="stable")[:count]
        return ~np.isin(np.arange(worth.size), least).reshape(worth.shape)


def masked(weight: Floats, pattern: Pattern) -> Floats:
    """The weight (rows, columns) with those of least magnitude zero; nothing is made up."""
    step = pattern.step if pattern.group else weight.shape[1]
    result = weight.copy()
    for start in range(0, weight.shape[1], step):
        part = result[:, start : start + step]
        part *= pattern.stays(np.abs(part))
    return result


def sparse(weight: Floats, moments: Floats, pattern: Pattern) -> Floats:
    """The weight (rows, columns) in the pattern, with little error of the outputs for inputs of these moments.

    `moments` (columns, columns) are positive definite.
    """
    # rows of the factor say how the columns behind make up for one: upper, of the inverse
    factor = np.linalg.cholesky(np.linalg.inv(moments)).T
    result, columns = weight.copy(), weight.shape[1]
    block = pattern.step * max(1, _BLOCK // pattern.step)
    for start in range(0, columns, block):
        end = min(start + block, columns)
        errors = np.zeros((len(weight), end - start))
        for column in range(start, end):
            if (column - start) % pattern.step == 0:
                chosen = slice(column, min(column + pattern.step, end))
                stays = pattern.stays(np.square(result[:, chosen] / np.diagonal(factor)[chosen]))
            kept = stays[:, (column - start) % pattern.step]
            lost = np.where(kept, 0.0, result[:, column] / factor[column, column])
            result[:, column:end] -= lost[:, None] * factor[column, column:end]
            result[~kept, column] = 0.0
            errors[:, column - start] = lost
        result[:, end:] -= errors @ factor[start:end, end:]
    return _solved(weight, result, moments)


def _solved(weight: Floats, start: Floats, moments: Floats) -> Floats:
    """The weights where `start` is not zero, of less error than `start`: nearly the least, in a few steps."""
    stays = start != 0
    result, scale = start.copy(), 1 / np.diagonal(moments)
    residual = ((weight - result) @ moments) * stays
    ahead = scaled = residual * scale
    power = (residual * scaled).sum(1)
    steps = _STEPS if moments.size * len(weight) < _LARGE else _STEPS_OF_LARGE
    for _ in range(steps):
        image = (ahead @ moments) * stays
        length = power / np.maximum((ahead * image).sum(1), _TINY)
        result += length[:, None] * ahead
        residual -= length[:, None] * image
        scaled = residual * scale
        before, power = power, (residual * scaled).sum(1)
        ahead = scaled + (power / np.maximum(before, _TINY))[:, None] * ahead
    return result
