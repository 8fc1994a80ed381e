"""Setting the quantizers by a scheme, where the scheme stands for several by the one that the outputs are best with."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from isobit.backend.checked_model import CheckedModel
from isobit.calibration.resolve import Resolved
from isobit.calibration.scheme import Calibrator
from isobit.calibration.schemes.auto import ComparesSchemes
from isobit.errors import FormatError
from isobit.graph.fingerprint import digest, fingerprint
from isobit.quantsim.judging.judge import Judge, Ratios, is_ahead, mean
from isobit.quantsim.judging.set_tried import set_tried
from isobit.quantsim.simulation import Simulation

logger = logging.getLogger(__name__)


class Each(Protocol):
    """Shows how far work is: gives the items of it one by one."""

    def __call__(self, items: Sequence[Calibrator], what: str) -> Iterator[Calibrator]:
        """The items."""
        ...


def set_encodings(simulation: Simulation, calibrator: Calibrator, each: Each | None = None) -> None:
    """Choose every encoding by the statistics, and set the quantizers; `each` shows the schemes that are tried."""
    if not isinstance(calibrator, ComparesSchemes):
        simulation.set_encodings(calibrator)
        if simulation.model.compensations and simulation.judge is not None:
            _judge_compensations(simulation, simulation.judge, None)
        return
    first = calibrator.candidates[0]
    integers = any(p.spec.is_integer and p.fixed_range is None for p in simulation.plan.of_kind("activation"))
    if simulation.judge is None or not integers:
        simulation.set_encodings(first)
        if integers:
            note = f"calibration {calibrator.name!r} had no samples to compare schemes with: it took {first.name!r}"
            simulation.notes[note] = None
        return

    def take(resolved: Resolved, _: Calibrator) -> CheckedModel:
        set_tried(simulation.model, simulation.plan, resolved.encodings)
        return simulation.model

    schemes = each(calibrator.candidates, "comparing schemes") if each else calibrator.candidates
    state, before = state_of(simulation.model), dict(simulation.model.encodings())
    try:
        tried = compare(simulation.judge, schemes, simulation.resolver(), take, state)
    except BaseException:  # an interrupt too: what was tried last is nobody's choice
        model = simulation.model
        model.set_quantizers({site: before.get(site) for site in [*model.encodings(), *before]})
        model.enable(list(before), on=True)
        raise
    best = best_of(tried)
    simulation.take(best.resolved, best.calibrator)
    names = Counter(candidate.calibrator.name for candidate in tried)
    labels = [c.calibrator.name if names[c.calibrator.name] == 1 else str(c.calibrator) for c in tried]
    figures = ", ".join(f"{label} {mean(c.ratios):.1f}" for label, c in zip(labels, tried, strict=True))
    logger.info("calibration %s: %s dB", calibrator.name, figures)
    simulation.calibration = f"{simulation.calibration} (the best of {figures} dB)"
    if simulation.model.compensations:
        _judge_compensations(simulation, simulation.judge, best.ratios)


def state_of(model: CheckedModel) -> str:
    """One hash of a model's graph and constants, corrections included."""
    return digest(fingerprint(model.graph, model.weight))


@dataclass(frozen=True, eq=False)
class Candidate:
    """A scheme, what it makes of the statistics, and how good the outputs are with it."""

    calibrator: Calibrator
    resolved: Resolved
    ratios: Ratios


def compare(
    judge: Judge,
    calibrators: Iterable[Calibrator],
    resolve: Callable[[Calibrator], Resolved],
    take: Callable[[Resolved, Calibrator], CheckedModel],
    state: str,
) -> list[Candidate]:
    """Judge schemes; those that have no ranges for the formats of the plan are left out. Raises FormatError if all are.

    `resolve` makes the encodings of one, `take` the model with them, which is in `state` (`state_of`): what the judge
    has measured of that before is not measured again.
    """
    tried: list[Candidate] = []
    refusals: list[FormatError] = []
    for calibrator in calibrators:
        try:
            resolved = resolve(calibrator)
        except FormatError as error:
            refusals.append(error)
            continue
        rival = best_of(tried).ratios if tried else None
        ratios = judge.known(state, resolved.encodings, rival)
        if ratios is None:
            ratios = judge.ratios(take(resolved, calibrator), rival)
            judge.remember(state, resolved.encodings, ratios)
        tried.append(Candidate(calibrator, resolved, ratios))
    if not tried:
        raise refusals[-1]
    return tried


def best_of(tried: Sequence[Candidate]) -> Candidate:
    """The first that no later one is better than by more than the margin."""
    best = tried[0]
    for candidate in tried[1:]:
        if is_ahead(candidate.ratios, best.ratios):
            best = candidate
    return best


def _judge_compensations(simulation: Simulation, judge: Judge, tried: Ratios | None) -> None:
    """Take back what techniques did to make up for quantization where the outputs are better without it.

    `tried` is what was measured of the model while schemes were compared, with biases in float.
    """
    without = simulation.model.copy()
    without.take_back()
    if tried is not None:
        set_tried(without, simulation.plan, simulation.encodings)
    kept = judge.ratios(simulation.model) if tried is None else tried
    bare = judge.ratios(without, kept)
    figures = f"{mean(bare):.1f} dB without, {mean(kept[: len(bare)]):.1f} dB with"
    logger.info("corrections of biases: %s", figures)
    if is_ahead(bare, kept):
        simulation.model.take_back()
        note = f"the correction of biases was taken back: the outputs are better without it ({figures})"
        simulation.notes[note] = None
