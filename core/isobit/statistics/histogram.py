"""Histogram: how the values of a tensor are distributed, without a range in advance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from isobit.errors import DataError
from isobit.statistics.bin_counts import BinCounts
from isobit.statistics.count_bits import Scratch, count_bits
from isobit.statistics.min_max import MinMax
from isobit.statistics.sampling import SAMPLE_LIMIT, sample

_scratch = Scratch()


class Histogram:
    """Counts of float32 values by their top 16 bits (sign, exponent, 7 mantissa bits), with exact minimum and maximum.

    It needs no range in advance, so one pass serves every calibration scheme; it does not depend on the order or the
    size of batches, and merges by addition. Minimum, maximum and non-finite counts cover every element; the bins count
    at most about `limit` elements of each sample, chosen by position (`isobit.statistics.sampling`); None counts all.
    `batch_bounds` alone, which only a moving average reads, depends on batches; equality leaves it out.
    """

    wants: Literal["sample"] = "sample"

    def __init__(self, limit: int | None = SAMPLE_LIMIT) -> None:
        self.limit = limit
        self.minimum = np.inf
        self.maximum = -np.inf
        self.elements = 0
        self.non_finite = 0
        self.batch_bounds = MinMax()
        self._counts = BinCounts()

    def update(self, batch: NDArray[np.float32], channel_axis: int | None = None) -> None:
        """Add a batch; axis 0 is the batch, `channel_axis` as in the graph."""
        values = np.asarray(batch, np.float32)
        if values.size == 0:
            return
        finite = np.isfinite(values)
        non_finite = values.size - int(np.count_nonzero(finite))
        finite_values = values if not non_finite else values[finite]
        if finite_values.size:
            self._add_bounds(float(finite_values.min()), float(finite_values.max()))
        self._count(sample(values, channel_axis, self.limit), values.size, non_finite)

    def absorb(self, minimum: float, maximum: float, sampled: NDArray[np.float32], elements: int) -> None:
        """Add a batch that was reduced where it was computed: its exact bounds, chosen elements and element count."""
        non_finite = int(not np.isfinite(minimum)) + int(not np.isfinite(maximum))
        if not non_finite:
            self._add_bounds(minimum, maximum)
        self._count(np.ascontiguousarray(sampled, np.float32), elements, non_finite)

    def add_counts(self, counts: NDArray[np.int64]) -> int:
        """Add 65,536 counts by top 16 bits; returns how many of them are of infinity and NaN, which have no bin.

        For values counted on their device: `absorb` without sampled elements adds their bounds and their number.
        """
        return self._counts.add_table(counts)

    def _add_bounds(self, minimum: float, maximum: float) -> None:
        self._extend(minimum, maximum)
        self.batch_bounds.add(minimum + 0.0, maximum + 0.0)

    def _extend(self, minimum: float, maximum: float) -> None:
        # Adding 0.0 makes -0.0 the same zero: which of the two a reduction finds depends on its order.
        self.minimum, self.maximum = min(self.minimum, minimum) + 0.0, max(self.maximum, maximum) + 0.0

    def _count(self, sampled: NDArray[np.float32], elements: int, non_finite: int) -> None:
        self.elements += elements
        if sampled.size:
            with _scratch.zeroed_after() as (counts, rows):
                count_bits(sampled.reshape(-1).view(np.uint32), counts, rows)
                counted_non_finite = self._counts.add(counts, rows)
            self.non_finite += 0 if non_finite else counted_non_finite
        self.non_finite += non_finite

    @property
    def settings(self) -> tuple[Any, ...]:
        """What two of them must have alike to add up."""
        return (self.limit,)

    def blank(self) -> Histogram:
        """One with the same limit that has seen nothing."""
        return Histogram(self.limit)

    def merge(self, other: Histogram) -> None:
        """Add the histogram of a later part of the data. The sums are exact; the order matters to moving averages."""
        self._add(other)
        self.batch_bounds.merge(other.batch_bounds)

    def join(self, other: Histogram) -> None:
        """Add the histogram of another tensor over the same batches."""
        self._add(other)
        self.batch_bounds.join(other.batch_bounds)

    def repeated(self, times: int) -> Histogram:
        """As if every element had been seen so often in each batch."""
        result = self.blank()
        result.join(self)
        result.elements, result.non_finite = times * self.elements, times * self.non_finite
        result._counts = self._counts.repeated(times)
        return result

    def energy(self) -> float:
        """The sum of the squares of the values that the bins hold, to about a hundredth."""
        low, high, counts = self.bins()
        return float(np.square((low + high) / 2) @ counts)

    def _add(self, other: Histogram) -> None:
        self.check_limit(other)
        self._extend(other.minimum, other.maximum)
        self.elements += other.elements
        self.non_finite += other.non_finite
        self._counts.merge(other._counts)

    def check_limit(self, other: Histogram) -> None:
        """Raise DataError when the bins of the two count different shares of their samples."""
        if self.limit != other.limit:
            raise DataError(f"statistics with sampling limits {self.limit} and {other.limit} do not add up")

    @property
    def is_empty(self) -> bool:
        """Whether no finite value was seen."""
        return self.maximum < self.minimum

    @property
    def counted(self) -> int:
        """How many elements the bins hold."""
        return self._counts.total

    def bins(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
        """Lower edges, upper edges and counts of the non-empty bins, by rising value, cut to [minimum, maximum]."""
        keys, counts = self._counts.by_value()
        near = (keys.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        # The far edge is the next bin's near edge, which from the largest bin on would be infinity.
        far = ((keys.astype(np.uint32) << 16) | 0xFFFF).view(np.float32).astype(np.float64)
        low = np.minimum(near, far).clip(self.minimum, self.maximum)
        return low, np.maximum(near, far).clip(self.minimum, self.maximum), counts

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything, as arrays: for files and for comparison."""
        keys, counts = self._counts.by_key()
        limit = -1 if self.limit is None else self.limit
        return {
            "bounds": np.array([self.minimum, self.maximum], np.float64),
            "totals": np.array([self.elements, self.non_finite, limit], np.int64),
            "keys": keys.astype(np.uint16),
            "counts": counts,
            **self.batch_bounds.arrays(),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Histogram:
        """The inverse of `arrays`."""
        elements, non_finite, limit = (int(v) for v in arrays["totals"])
        histogram = cls(None if limit < 0 else limit)
        histogram.elements, histogram.non_finite = elements, non_finite
        histogram.minimum, histogram.maximum = (float(v) for v in arrays["bounds"])
        histogram.batch_bounds = MinMax.from_arrays(arrays)
        counts = arrays["counts"]
        if elements < 0 or not 0 <= non_finite <= elements or np.any(counts < 0) or counts.sum() > elements:
            raise DataError(f"counts of {elements} elements, {non_finite} of them not finite, that do not add up")
        histogram._counts = BinCounts.of(arrays["keys"], counts)
        is_known = bool(np.isfinite([histogram.minimum, histogram.maximum]).all())
        if (histogram.counted > 0) != is_known or is_known == histogram.is_empty:
            raise DataError(f"counts that do not fit the bounds {histogram.minimum} and {histogram.maximum}")
        return histogram

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Histogram):
            return NotImplemented
        own_arrays, other_arrays = self.arrays(), other.arrays()
        return all(np.array_equal(own_arrays[name], other_arrays[name]) for name in own_arrays.keys() - {"batches"})

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Histogram([{self.minimum:.6g}, {self.maximum:.6g}], {self.elements} elements)"
