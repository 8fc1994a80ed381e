"""Gram: second moments of the rows that meet a layer's weight. A layer's output error follows from them alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isobit.errors import DataError
from isobit.statistics.layer_rows.rows import Rows, paired_values

Matrix = NDArray[np.float64]

#: Rows that are added up at once in float64.
_CHUNK = 2048


class Gram:
    """Sums over rows x of the quantized model and, at the same stamps, rows r of the float model, for each group.

    ``second`` is sum x xᵀ, ``cross`` sum x rᵀ, ``reference`` sum r rᵀ, all (groups, columns, columns) in float64;
    ``total`` and ``reference_total`` are the sums of x and r, (groups, columns). With one model alone x is r.
    """

    def __init__(
        self,
        count: int,
        total: Matrix,
        second: Matrix,
        cross: Matrix | None = None,
        reference: Matrix | None = None,
        reference_total: Matrix | None = None,
    ) -> None:
        self.count = count
        self.total = total
        self.second = second
        self.cross = second if cross is None else cross
        self.reference = second if reference is None else reference
        self.reference_total = total if reference_total is None else reference_total

    @classmethod
    def of(cls, rows: Rows, reference: Rows | None = None) -> Gram:
        """The sums over `rows`, and with the rows of the float model at the same stamps.

        Raises DataError when there are no rows, when some are not finite, and when the stamps of the two differ.
        """
        x, r = paired_values(rows, reference)
        if r is None:
            return cls(len(x), _total(x), _products(x)[0])
        second, cross, reference_second = _products(x, r)
        return cls(len(x), _total(x), second, cross, reference_second, _total(r))

    @property
    def has_reference(self) -> bool:
        """Whether the rows are of two models."""
        return self.cross is not self.second

    @property
    def groups(self) -> int:
        """Groups of channels, each with matrices of its own."""
        return int(self.second.shape[0])

    @property
    def columns(self) -> int:
        """Weights of one output channel."""
        return int(self.second.shape[-1])

    @property
    def mean(self) -> Matrix:
        """Mean of x, (groups, columns)."""
        return self.total / self.count

    @property
    def reference_mean(self) -> Matrix:
        """Mean of r, (groups, columns)."""
        return self.reference_total / self.count

    def centered(self) -> Gram:
        """The sums over ``x - mean(x)`` and ``r - mean(r)``: the error that is left when the bias takes up the mean."""
        zero = np.zeros_like(self.total)
        second = self.second - _outer(self.total, self.mean)
        if not self.has_reference:
            return Gram(self.count, zero, second)
        cross = self.cross - _outer(self.total, self.reference_mean)
        reference = self.reference - _outer(self.reference_total, self.reference_mean)
        return Gram(self.count, zero, second, cross, reference, zero)

    @classmethod
    def sum(cls, grams: Sequence[Gram]) -> Gram:
        """The sums over the rows of all of them."""
        total = cls.from_arrays(grams[0].arrays())
        for gram in grams[1:]:
            total.merge(gram)
        return total

    def merge(self, other: Gram) -> None:
        """Add the sums of other rows."""
        if self.second.shape != other.second.shape or self.has_reference != other.has_reference:
            raise DataError(f"Grams of {self.second.shape} and {other.second.shape} do not add up")
        paired = self.has_reference
        self.count += other.count
        self.total, self.second = self.total + other.total, self.second + other.second
        self.cross = self.cross + other.cross if paired else self.second
        self.reference = self.reference + other.reference if paired else self.second
        self.reference_total = self.reference_total + other.reference_total if paired else self.total

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything, as arrays."""
        arrays: dict[str, NDArray[Any]] = {"count": np.array([self.count], np.int64)}
        arrays.update(total=self.total, second=self.second)
        if self.has_reference:
            arrays.update(cross=self.cross, reference=self.reference, reference_total=self.reference_total)
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Gram:
        """The inverse of `arrays`."""
        sums = {name: array for name, array in arrays.items() if name != "count"}
        return cls(int(arrays["count"][0]), **sums)


def _total(x: NDArray[np.float32]) -> Matrix:
    return np.asarray(x.sum(axis=0, dtype=np.float64))


def _products(x: NDArray[np.float32], r: NDArray[np.float32] | None = None) -> list[Matrix]:
    """Sums of x xᵀ, and with r of x rᵀ and r rᵀ, for each group, chunk after chunk in the order of the rows."""
    sums = [np.zeros((x.shape[1], x.shape[2], x.shape[2])) for _ in range(1 if r is None else 3)]
    for start in range(0, len(x), _CHUNK):
        chunks = [y[start : start + _CHUNK].transpose(1, 0, 2) for y in (x, r) if y is not None]
        parts = [np.asarray(chunk, np.float64, order="C") for chunk in chunks]  # contiguous rows of each group
        left, right = parts[0], parts[-1]
        for total, a, b in zip(sums, (left, left, right), (left, right, right), strict=False):
            total += a.transpose(0, 2, 1) @ b
    return sums


def _outer(x: Matrix, y: Matrix) -> Matrix:
    return x[:, :, None] * y[:, None, :]
