"""Every quantizer measured alone, within a number of passes that is known before."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isobit.analysis.findings import CAP, SiteError
from isobit.analysis.sensitivity.chain import Chain, Changed, Values
from isobit.analysis.sensitivity.cut_graph import Part, cut_into_parts
from isobit.analysis.sensitivity.how_measured import Measure, Sensitivity
from isobit.analysis.sensitivity.split_batches import split, taken
from isobit.analysis.site_errors import decibels
from isobit.analysis.trials import Trials, ratios_of_samples
from isobit.backend.optional import RunsParts
from isobit.data import Batch
from isobit.data.samples import SampleAxes
from isobit.deadline import check_time
from isobit.errors import ModelError

#: Passes that all runs together may take: so many, and for each quantizer of a large network.
_PASSES = 30.0
_PASSES_A_SITE = 0.25

#: Of these, the part that goes to all quantizers alike; the rest goes to those that cost most.
_FOR_ALL = 0.75

#: Samples on which a quantizer is measured at least.
_FEWEST = 4

#: Parts that a model is cut into, and bytes that the values between them may take.
_PARTS = 24
_KEPT_BYTES = 1 << 28


@dataclass(frozen=True)
class MeasuredSites:
    """The decibels of the outputs with each quantizer off alone, or on alone, in the order given.

    `scatter` has the standard error of each, as samples differ in their distance from all quantizers together; NaN
    where that is not known.
    """

    decibels: tuple[float, ...]
    scatter: tuple[float, ...]
    about: Sensitivity


def measure_sites(trials: Trials, errors: Sequence[SiteError], measure: Measure, first: int = 0) -> MeasuredSites:
    """Measure every quantizer, those that share a grid as one.

    Where that takes more than 30 passes, and more than a quarter of one for each, each is run on some of the samples,
    and its distance there from all quantizers together, sample by sample, stands for the others. The first of the
    errors, as many as `first`, and then the ones that were found to cost most are run on all samples, as far as the
    passes go.
    """
    if isinstance(trials.model.inner, RunsParts) and trials.outputs is not None and errors:
        try:
            return _InParts(trials, errors, measure).measured(first)
        except ModelError:  # it does not run in parts: it has run as a whole
            pass
    run = trials.without if measure == "off" else trials.alone
    found = tuple(decibels(1.0, run(error.sites)) for error in errors)
    count = len(errors)
    about = Sensitivity(measure, count, float(count), trials.samples, count, 0.0, _rank(errors, found, measure))
    return MeasuredSites(found, (math.nan,) * count, about)


def _rank(errors: Sequence[SiteError], found: Sequence[float], measure: Measure) -> float | None:
    """The rank correlation of the shares with what the quantizers were found to cost."""
    costs = np.array(found) * (1 if measure == "off" else -1)
    shares = np.array([error.share for error in errors])
    if len(errors) < 3 or np.ptp(shares) == 0 or np.ptp(np.nan_to_num(costs)) == 0:
        return None
    return float(np.corrcoef(_ranks(shares), _ranks(costs))[0, 1])


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Places in the order of size, equal ones in the middle of theirs; importing scipy's takes longer than it saves."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]


class _InParts:
    """Runs of one measurement: `distances` are in dB from all quantizers together, by quantizer and sample."""

    def __init__(self, trials: Trials, errors: Sequence[SiteError], measure: Measure) -> None:
        self.trials, self.errors, self.measure = trials, errors, measure
        everything = list(trials.encodings)
        self.base = trials.model.copy()
        if measure == "on":
            self.base.take_back(trials.compensated_alone(everything))
            self.base.enable(everything, on=False)
        self.tried = self.base.copy()
        self.axes = SampleAxes.of(self.base.graph)
        self.passes = 0.0
        self.distances: list[list[float]] = [[] for _ in errors]
        self.parts, self.long, self.room = self._parts()
        self.works = [self._work(error) for error in errors]

    def measured(self, first: int) -> MeasuredSites:
        """Run all of them on some samples, and the worst on the rest."""
        samples, every = self.trials.samples, range(len(self.errors))
        allowed = max(_PASSES, _PASSES_A_SITE * len(self.errors))
        for_sites = allowed - self.passes - 2  # one pass of the float model, and one that all have in common
        some = samples
        if sum(self.works) > for_sites:
            some = min(samples, max(_FEWEST, int(samples * _FOR_ALL * for_sites / sum(self.works))))
        head, rest = split(self.trials.batches, self.axes, some)
        count = self.axes.size(head)
        self._run(head, every)
        spread = self._scatter()
        whole = list(every)
        if rest:
            part = 1 - count / samples
            left = allowed - self.passes - 2 * part
            order = sorted(every, key=lambda i: (i >= first, self._mean(i) * (1 if self.measure == "on" else -1)))
            costs = np.cumsum([part * self.works[i] for i in order])
            whole = [i for i, cost in zip(order, costs, strict=True) if cost <= left]
            if whole:
                self._run(rest, whole)
        all_together = min(max(self.trials.sqnr, -CAP), CAP)
        found = tuple(min(max(all_together + self._mean(i), -CAP), CAP) for i in every)
        others = [spread[i] for i in set(every) - set(whole)]
        error = float(np.median(others)) if others else 0.0
        rank = _rank(self.errors, found, self.measure)
        about = Sensitivity(self.measure, len(every), self.passes, count, len(whole), error, rank)
        return MeasuredSites(found, self._scatter(), about)

    def _scatter(self) -> tuple[float, ...]:
        """The standard errors of the means; one sample says nothing of others."""
        return tuple(float(np.std(d, ddof=1) / np.sqrt(len(d))) if len(d) > 1 else math.nan for d in self.distances)

    def _mean(self, index: int) -> float:
        return float(np.mean(self.distances[index]))

    def _parts(self) -> tuple[list[Part], Mapping[int, Part], int]:
        """The parts, those that run as one, and how many samples can be run with all that lies between them kept."""
        batch = self.trials.batches[0]
        one = taken(batch, self.axes, 0, 1)
        most = _PARTS
        while True:
            parts = cut_into_parts(self.base.graph, most)
            chain = Chain(self.base, {}, parts, [one])
            self.passes += self.axes.size([one]) / self.trials.samples
            room = int(_KEPT_BYTES // max(1, chain.nbytes)) * self.axes.size([one])
            if room or most == 1:
                return parts, chain.long, max(room, 1)
            self.base, most = self.base.copy(), most // 2  # what was made for the parts goes with the model

    def _work(self, error: SiteError) -> float:
        changed = Changed(self.base, {}, error.sites)
        return sum(part.work for part in self.parts[changed.first_of(self.parts) :])

    def _run(self, batches: Sequence[Batch], chosen: Sequence[int]) -> None:
        """Run the chosen quantizers on these batches, in pieces of which the values between parts can be kept."""
        for batch in batches:
            for start in range(0, self.axes.size([batch]), self.room):
                piece = taken(batch, self.axes, start, start + self.room)
                self._run_piece(piece, chosen)
                if piece is batch:
                    break

    def _run_piece(self, batch: Batch, chosen: Sequence[int]) -> None:
        on = {} if self.measure == "on" else self.trials.encodings
        chain = Chain(self.base, on, self.parts, [batch], self.long)
        exact: Values = chain.outputs[0] if self.measure == "on" else self.trials.run_float(batch)
        together: Values = chain.outputs[0] if self.measure == "off" else self.trials.model.run(batch)
        names = [name for name in self.trials.names if name in chain.outputs[0]]
        common = ratios_of_samples(exact, together, names)
        for index in chosen:
            check_time()
            with self._changed(self.errors[index]) as changed:
                ratios = self._ratios_with(changed, chain, batch, exact, names)
            if len(ratios) != len(common):  # or sizes that are others
                ratios = [min(ratios)] * len(common)
            self.distances[index] += [one - other for one, other in zip(ratios, common, strict=True)]
        self.passes += (chain.ran + 1) * self.axes.size([batch]) / self.trials.samples

    def _ratios_with(
        self, changed: Changed, chain: Chain, batch: Batch, exact: Values, names: Sequence[str]
    ) -> list[float]:
        """The ratios of one changed model, run as a whole where it does not run in parts."""
        try:
            return ratios_of_samples(exact, next(chain.outputs_with(changed)), names)
        except ModelError:
            self.passes += self.axes.size([batch]) / self.trials.samples
        try:
            return ratios_of_samples(exact, changed.model.run(batch), names)
        except ModelError:  # rounded numbers became sizes that do not fit
            return [-CAP]

    @contextmanager
    def _changed(self, error: SiteError) -> Iterator[Changed]:
        """The base with these quantizers switched, and the biases that made up for the rounding of their weights."""
        encodings, is_off = self.trials.encodings, self.measure == "off"
        sites = [site for site in error.sites if site in encodings]
        others = [site for site in encodings if site not in set(sites)]
        on = {site: encodings[site] for site in (others if is_off else sites)}
        if is_off:
            constants = self.trials.compensated_alone(sites)
        else:
            left = set(self.trials.compensated_alone(others))
            constants = [name for name in self.trials.compensated_alone(list(encodings)) if name not in left]
        if constants:
            model = self.trials.model.copy()
            model.take_back(constants if is_off else sorted(left))
            model.enable(sites if is_off else others, on=False)
            yield Changed(model, on, sites, constants)
            return
        self.tried.enable(sites, on=not is_off)
        try:
            yield Changed(self.tried, on, sites)
        finally:
            self.tried.enable(sites, on=is_off)
