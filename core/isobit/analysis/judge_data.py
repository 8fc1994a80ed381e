"""Is the data enough, and what of it decides: ranges without each part of it, samples that set ranges, duplicates."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np

from isobit.analysis.findings import DataJudged, SiteError
from isobit.analysis.range_setters import SampleBounds, find_range_setters
from isobit.backend.checked_model import CheckedModel
from isobit.calibration.error import Bins, mean_square_errors
from isobit.calibration.scheme import Calibrator
from isobit.data import Batch
from isobit.data.samples import SampleAxes
from isobit.encodings.quant_spec import QuantSpec
from isobit.encodings.ranges import Grids, encode_range
from isobit.errors import IsobitError
from isobit.graph.sites import Tensor
from isobit.statistics.histogram import Histogram
from isobit.statistics.observer import Request

#: Parts of the data that are left out one after the other.
_PARTS = 4

#: Fewer samples say nothing of what is usual.
_FEWEST = 4


class SeenData:
    """One pass over the data: the range of each sample, and a histogram of each part, of every tensor."""

    def __init__(
        self,
        model: CheckedModel,
        batches: Sequence[Batch],
        formats: Mapping[str, QuantSpec],
        *,
        is_compared: bool = False,
    ) -> None:
        self._axes = SampleAxes.of(model.graph)
        self.batches, self.samples, self._formats = batches, self._axes.size(batches), formats
        self._bounds = {name: SampleBounds() for name in formats}
        self._parts: list[dict[str, Histogram]] = []
        self._is_few = self.samples < _FEWEST
        if formats and (is_compared or not self._is_few):
            for part in np.array_split(np.arange(len(batches)), min(_PARTS, len(batches))):
                self._observe(model, [batches[index] for index in part])

    def _observe(self, model: CheckedModel, part: Sequence[Batch]) -> None:
        histograms = {name: Histogram() for name in self._formats}
        requests = [Request(Tensor(name), histogram) for name, histogram in histograms.items()]
        model.observe(part, [*requests, *(Request(Tensor(name), b) for name, b in self._bounds.items())])
        self._parts.append(histograms)

    @property
    def histograms(self) -> dict[str, Histogram]:
        """What was seen of each tensor in all parts."""
        return {name: _sum([part[name] for part in self._parts]) for name in self._formats} if self._parts else {}

    def judge(self, errors: Sequence[SiteError], scheme: Calibrator) -> DataJudged:
        """What the data is worth for the ranges that a scheme takes from it."""
        costs = self._costs(scheme)
        share = {str(site): error.share / len(error.sites) for error in errors for site in error.sites}
        # The last part of the data changed the outputs by this; as much again changes them by no more.
        relative = sum(share.get(name, 0.0) * (10 ** (cost / 10) - 1) for name, cost in costs.items())
        more = 10 * math.log10(1 + relative) if costs else None
        return DataJudged(
            self.samples,
            self._duplicates(),
            () if self._is_few else find_range_setters(self._bounds, self.samples),
            costs,
            more,
            max(1, len(self._parts)),
        )

    def _costs(self, scheme: Calibrator) -> dict[str, float]:
        """Decibels that the noise of each tensor grows by where a part of the data has no say in its range."""
        if len(self._parts) < 2 or self._is_few:
            return {}
        costs = {}
        for name, spec in self._formats.items():
            try:
                costs[name] = _cost([part[name] for part in self._parts], spec, scheme)
            except IsobitError:  # a part that never reached the tensor
                continue
        return costs

    def _duplicates(self) -> tuple[tuple[int, int], ...]:
        """Pairs of samples that are equal, bit for bit, the earlier one first."""
        seen: dict[bytes, int] = {}
        pairs, number = [], 0
        for batch in self.batches:
            count = self._axes.size([batch])
            for index in range(count):
                digest = hashlib.blake2b(digest_size=16)
                for name, axis in self._axes.by_name.items():
                    if batch[name].ndim > axis and batch[name].shape[axis] == count:
                        digest.update(np.ascontiguousarray(np.take(batch[name], index, axis)).tobytes())
                first = seen.setdefault(digest.digest(), number) if self._axes.by_name else number
                if first != number:
                    pairs.append((first, number))
                number += 1
        return tuple(pairs)


def _cost(parts: Sequence[Histogram], spec: QuantSpec, scheme: Calibrator) -> float:
    bins = Bins.of(_sum(parts))
    exact = noise_with(bins, _sum(parts), spec, scheme)
    rest = [noise_with(bins, _sum([*parts[:i], *parts[i + 1 :]]), spec, scheme) for i in range(len(parts))]
    mean = float(np.mean(rest))
    return max(0.0, 10 * math.log10(mean / exact)) if exact > 0 and mean > 0 else 0.0


def noise_with(bins: Bins, seen: Histogram, spec: QuantSpec, scheme: Calibrator) -> float:
    """Mean square error of values in bins with the range that a scheme takes from what was seen."""
    encoding = encode_range(*scheme.range(seen, spec), spec)
    grid = Grids(spec, encoding.scale.reshape(1), encoding.zero_point.reshape(1))
    return float(mean_square_errors(bins, grid)[0])


def _sum(parts: Sequence[Histogram]) -> Histogram:
    total = Histogram()
    for part in parts:
        if not part.is_empty:
            total.merge(part)
    return total
