"""Has the data moved: tensors whose ranges a second set of data would decide otherwise, and what that costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from isobit.analysis.findings import Drift, Drifted, SiteError
from isobit.analysis.judge_data import noise_with
from isobit.backend.checked_model import CheckedModel
from isobit.calibration.error import Bins
from isobit.calibration.scheme import Calibrator
from isobit.data import Batch
from isobit.data.samples import SampleAxes
from isobit.encodings.quant_spec import QuantSpec
from isobit.errors import IsobitError
from isobit.graph.sites import Tensor
from isobit.statistics.histogram import Histogram
from isobit.statistics.observer import Request

#: Decibels below which a range has not moved: other samples of the same kind make as much of a difference.
_MOVED = 0.1


def find_drift(
    model: CheckedModel,
    batches: Sequence[Batch],
    first: Mapping[str, Histogram],
    formats: Mapping[str, QuantSpec],
    errors: Sequence[SiteError],
    scheme: Calibrator,
) -> Drift:
    """What a second set of data, `batches`, makes of the ranges that `first` gave, by a scheme.

    One pass of the float model over it; the rest follows from the two histograms of each tensor.
    """
    second = {name: Histogram() for name in first}
    model.observe(batches, [Request(Tensor(name), histogram) for name, histogram in second.items()])
    found, relative = [], 0.0
    shares = {str(site): error.share / len(error.sites) for error in errors for site in error.sites}
    for name, before in first.items():
        after = second[name]
        if before.is_empty or after.is_empty:
            continue
        try:
            cost = _cost(before, after, formats[name], scheme)
        except IsobitError:  # values that no range of this format fits
            continue
        relative += shares.get(name, 0.0) * (10 ** (cost / 10) - 1)
        if cost >= _MOVED:
            found.append(Drifted(name, (before.minimum, before.maximum), (after.minimum, after.maximum), cost))
    found.sort(key=lambda item: -item.cost)
    return Drift(SampleAxes.of(model.graph).size(batches), tuple(found), 10 * math.log10(1 + relative))


def _cost(before: Histogram, after: Histogram, spec: QuantSpec, scheme: Calibrator) -> float:
    """Decibels that the second data's noise is larger by with the range of the first than with its own."""
    bins = Bins.of(after)
    old, own = noise_with(bins, before, spec, scheme), noise_with(bins, after, spec, scheme)
    return max(0.0, 10 * math.log10(old / own)) if old > 0 and own > 0 else 0.0
