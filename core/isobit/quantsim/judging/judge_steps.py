"""Judging the steps of a recipe: a model as it would be quantized at that point, before a step and behind it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from isobit.backend.checked_model import CheckedModel
from isobit.calibration.resolve import Resolved, resolver
from isobit.calibration.scheme import Calibrator
from isobit.calibration.schemes.auto import ComparesSchemes
from isobit.data import Batch, Dataset
from isobit.data.samples import SampleAxes
from isobit.placement.plan import Plan
from isobit.quantsim.apply import context_of, requests_of
from isobit.quantsim.checkpoint import Checkpoint
from isobit.quantsim.judging.choose_scheme import best_of, compare, state_of
from isobit.quantsim.judging.find_loss import Loss, find_loss
from isobit.quantsim.judging.judge import Ratios
from isobit.quantsim.judging.judged_part import JudgedPart, judged_part
from isobit.quantsim.judging.set_tried import set_tried
from isobit.quantsim.observe import Passes
from isobit.quantsim.simulation import Simulation
from isobit.recipes.recipe import Recipe, Step
from isobit.statistics.observer import Request
from isobit.techniques.context import Requests, TechniqueContext
from isobit.techniques.technique import SharesCalibration, Technique

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class State:
    """A simulation before a step."""

    checkpoint: Checkpoint
    plan: Plan


class StepJudge:
    """Judges a model by the outputs it would have if the recipe ended here.

    So steps that come in the pass of calibration, which cost nothing, are done on a copy first: rounding that gains
    what a correction of biases would gain as well gains nothing. `passes` go through what is not held back.
    """

    def __init__(self, simulation: Simulation, recipe: Recipe, passes: Passes, calibrator: Calibrator) -> None:
        self.passes = passes
        self._simulation, self._recipe, self._calibrator = simulation, recipe, calibrator
        self._is_ready = False
        self._figure: tuple[Sequence[Technique], Ratios] | None = None
        self._earlier: tuple[Sequence[Technique], Ratios] | None = None

    def prepare(self) -> None:
        """Take the samples, once, run by the float model as it is now."""
        if self._is_ready:
            return
        self._is_ready = True
        simulation, dataset = self._simulation, self.passes.dataset
        simulation.remove_quantizers()
        simulation.judge = None  # an earlier calibration may have kept other samples, and fewer
        first, part = _judged(dataset, self._recipe, may_hold_back=not self.passes.resumes)
        chosen = dataset.spread(part.batches)
        if part.is_held_back:
            self.passes = self.passes.on(dataset.without(chosen))
        simulation.keep_reference(dataset.batches(chosen) if dataset.is_at_hand else first)

    def observe(self, step: Step, later: Sequence[Step]) -> None:
        """Observe in one pass what a step asks for, and what it takes to judge the model before it."""
        context = self._context()
        requests = _asked([step.make(), *_compensating_techniques([step, *later])], context)
        context.observe(Requests(requests, ranges=True))

    def state(self) -> State:
        """What there is now, to go back to."""
        return State(self._simulation.checkpoint(), self._simulation.plan)

    def before(self, state: State, later: Sequence[Step]) -> Ratios:
        """The decibels before a step; measured only where it changed something, and once."""
        compensating = _compensating_techniques(later)
        if self._figure is None or self._figure[0] != compensating:
            checkpoint, current = state.checkpoint, self._context()
            checkpoint.statistics.forget_rows()
            context = TechniqueContext(
                checkpoint.model,
                state.plan,
                current.dataset,
                frozen=checkpoint.frozen,
                replan=current.replan,
                calibrator=self._calibrator,
                batch_norms=checkpoint.batch_norms,
                statistics=checkpoint.statistics,
                run_pass=self.passes,
                name="judging",
            )
            self._figure = compensating, self._measured(context, compensating)
        return self._figure[1]

    def after(self, later: Sequence[Step]) -> Ratios:
        """The decibels of the model as it is now."""
        self._earlier, compensating = self._figure, _compensating_techniques(later)
        self._figure = compensating, self._measured(self._context(), compensating)
        return self._figure[1]

    def loss(self) -> Loss:
        """Whether weights or activations cost the outputs more; the ranges of the model were observed for a step."""
        judge = self._simulation.judge
        assert judge is not None  # `prepare` made it
        return find_loss(self._context(), judge)

    def rolled_back(self) -> None:
        """The model is again what it was before the last step."""
        self._figure = self._earlier

    def forget(self) -> None:
        """The model was changed without being judged."""
        self._figure = None

    def _context(self) -> TechniqueContext:
        return context_of(self._simulation, self.passes, self._calibrator, "judging")

    def _measured(self, context: TechniqueContext, compensating: Sequence[Technique]) -> Ratios:
        """The decibels of a quantized copy, with the best of the schemes that may be chosen later."""
        judge = self._simulation.judge
        assert judge is not None  # `prepare` made it
        statistics = context.observe(Requests(_asked(compensating, context), ranges=True)).ranges
        copy = context.model.copy()
        for technique in compensating:
            try:
                technique.apply(context.on(copy))
            except Exception as error:  # it is left out, and said so, when its turn comes
                logger.debug("judging without %s: %s", type(technique).__name__, error)
                copy = context.model.copy()
                break
        calibrator = self._calibrator
        candidates = calibrator.candidates if isinstance(calibrator, ComparesSchemes) else [calibrator]
        frozen, memo = context.frozen, self._simulation.ranges
        resolved = resolver(context.graph, context.plan, statistics, copy.weight, frozen=frozen, memo=memo)

        def take(chosen: Resolved, scheme: Calibrator) -> CheckedModel:
            set_tried(copy, context.plan, chosen.encodings)
            return copy

        schemes = self.passes.each(candidates, "judging, schemes")
        return best_of(compare(judge, schemes, resolved, take, state_of(copy))).ratios


def _compensating_techniques(steps: Sequence[Step]) -> list[Technique]:
    """Those of the steps that only make up for quantization, and need no pass of their own."""
    techniques: list[Technique] = [step.make() for step in steps]
    return [item for item in techniques if isinstance(item, SharesCalibration) and item.shares_calibration]


def _asked(techniques: Sequence[Technique], context: TechniqueContext) -> list[Request]:
    """What techniques must see of the float model."""
    return [request for technique in techniques for request in requests_of(technique, context).float]


def _judged(dataset: Dataset, recipe: Recipe, *, may_hold_back: bool) -> tuple[list[Batch], JudgedPart]:
    """How much of the data judges, and so many batches from its start."""
    axes, seen = SampleAxes.of(dataset.graph), list[Batch]()

    def sizes() -> Iterator[int]:
        for batch in dataset:
            seen.append(batch)
            yield axes.size([batch])

    part = judged_part(recipe, sizes(), len(dataset), may_hold_back=may_hold_back)
    return seen[: part.batches], part
