"""Is the data enough, and what of it decides: ranges without each part of it, samples that set ranges, duplicates."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np

from isobit.analysis.findings import DataJudged, SiteError
from isobit.analysis.range_setters import SampleBounds, find_range_setters
from isobit.analysis.tensor_noise import Floats
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
        growths = self._growths(scheme)
        costs = {name: self._cost(name, scheme) for name in growths}
        share = {str(site): error.share / len(error.sites) for error in errors for site in error.sites}
        # The last part of the data changed the outputs by this; as much again changes them by no more. Outputs are
        # judged by the mean of samples in decibels, so that one loud part that is cut off does not count for all.
        relative = [share.get(name, 0.0) * (growth - 1) for name, growth in growths.items()]
        more = float(10 * np.log10(1 + np.sum(relative, axis=0)).mean()) if growths else None
        return DataJudged(
            self.samples,
            self._duplicates(),
            () if self._is_few else find_range_setters(self._bounds, self.samples),
            costs,
            more,
            max(1, len(self._parts)),
        )

    def _growths(self, scheme: Calibrator) -> dict[str, Floats]:
        """By how much the noise of each tensor grows where a part has no say in its range: [left out, in which]."""
        if len(self._parts) < 2 or self._is_few:
            return {}
        growths = {}
        for name, spec in self._formats.items():
            try:
                growths[name] = _growth([part[name] for part in self._parts], spec, scheme)
            except IsobitError:  # a part that never reached the tensor
                continue
        return growths

    def _cost(self, name: str, scheme: Calibrator) -> float:
        """Decibels that the noise of a tensor in all parts grows by where one has no say in its range."""
        spec, parts = self._formats[name], [part[name] for part in self._parts]
        bins = Bins.of(_sum(parts))
        exact = noise_with(bins, _sum(parts), spec, scheme)
        rest = [noise_with(bins, _sum([*parts[:i], *parts[i + 1 :]]), spec, scheme) for i in range(len(parts))]
        mean = float(np.mean(rest))
        return max(0.0, 10 * math.log10(mean / exact)) if exact > 0 and mean > 0 else 0.0

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


def _growth(parts: Sequence[Histogram], spec: QuantSpec, scheme: Calibrator) -> Floats:
    """Noise in each part (columns) with the range of all others but one (rows), over that with the range of all.

    What quiet parts gain by the narrower range makes up for nothing in the loud one that is cut off: it counts as 1.
    """
    bins = [Bins.of(part) for part in parts]
    exact = np.array(noises_with(bins, _sum(parts), spec, scheme))
    rest = [noises_with(bins, _sum([*parts[:i], *parts[i + 1 :]]), spec, scheme) for i in range(len(parts))]
    growth = np.divide(rest, exact, out=np.ones((len(parts),) * 2), where=exact > 0)
    return np.asarray(np.maximum(growth, 1.0))


def noise_with(bins: Bins, seen: Histogram, spec: QuantSpec, scheme: Calibrator) -> float:
    """Mean square error of values in bins with the range that a scheme takes from what was seen."""
    return noises_with([bins], seen, spec, scheme)[0]


def noises_with(parts: Sequence[Bins], seen: Histogram, spec: QuantSpec, scheme: Calibrator) -> list[float]:
    """The same for values of several parts."""
    encoding = encode_range(*scheme.range(seen, spec), spec)
    grid = Grids(spec, encoding.scale.reshape(1), encoding.zero_point.reshape(1))
    return [float(mean_square_errors(bins, grid)[0]) for bins in parts]


def _sum(parts: Sequence[Histogram]) -> Histogram:
    total = Histogram()
    for part in parts:
        if not part.is_empty:
            total.merge(part)
    return total
