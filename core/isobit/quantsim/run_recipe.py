"""Running a recipe: each step is timed, judged by what it does to the outputs, and rolled back where it hurts."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Sequence

from isobit.calibration.scheme import Calibrator
from isobit.data import Batch
from isobit.errors import (
    DataError,
    FormatError,
    IsobitError,
    ModelError,
    OutputError,
    PluginError,
    RecipeError,
    RecipeWarning,
    TargetError,
)
from isobit.quantsim.apply import apply_technique, context_of, needs_own_pass, requests_of
from isobit.quantsim.checks.find_loss import Loss, find_loss
from isobit.quantsim.checks.quality import Outputs, output_sqnr
from isobit.quantsim.observe import Passes
from isobit.quantsim.simulation import Simulation
from isobit.recipes.recipe import Recipe, Step, StepResult
from isobit.techniques.context import Requests
from isobit.techniques.technique import RoundsWeights

logger = logging.getLogger(__name__)

#: Errors of the data, the model or the machine, which no other step would be without.
_NOT_OF_THE_STEP = (
    *(DataError, FormatError, ModelError, PluginError, OutputError, RecipeError, TargetError),
    MemoryError,
)


def run_recipe(simulation: Simulation, recipe: Recipe, passes: Passes, calibrator: Calibrator) -> None:
    """Run the steps of a recipe on a simulation that is not calibrated yet; calibration is left to the caller.

    Their results go into ``simulation.steps``. Raises DataError for an iterator that serves once, before anything runs,
    when the recipe goes through the data more than once.
    """
    steps = [step for step in recipe.steps if not step.obstacle(simulation.plan)]
    times = sum(needs_own_pass(step.make()) for step in steps) + (2 if recipe.judge_samples else 0) + 1
    passes.dataset.require_passes(times, f"recipe {recipe.name!r}, with calibration,")
    judge = _Judge(simulation, passes, recipe.judge_samples, calibrator) if recipe.judge_samples else None
    results = []
    for index, step in enumerate(recipe.steps):
        obstacle = step.obstacle(simulation.plan)
        if obstacle:
            results.append(StepResult(step.name, "skipped", why=obstacle))
        else:
            later = recipe.steps[index + 1 :]
            following = next((other for other in later if not other.obstacle(simulation.plan)), None)
            results.append(_run_step(simulation, step, following, passes, judge, calibrator))
        logger.info("recipe %s: %s", recipe.name, results[-1])
    simulation.steps = results


def _run_step(
    simulation: Simulation,
    step: Step,
    following: Step | None,
    passes: Passes,
    judge: _Judge | None,
    calibrator: Calibrator,
) -> StepResult:
    before = judge.sqnr(step) if judge is not None and not step.keep else None
    checkpoint = None if before is None else simulation.checkpoint()
    start, passes_before, edits_before = time.perf_counter(), passes.count, len(simulation.edits)
    loss = ""
    try:
        if judge is not None and checkpoint is not None and _rounds_weights(step):
            found = judge.loss(step)
            loss = str(found)
            if not found.is_of_weights:
                return StepResult(step.name, "skipped", why=f"weights are not the loss: {loss}")
        report = apply_technique(simulation, step.make(), passes, calibrator)
    except _NOT_OF_THE_STEP:
        raise
    except Exception as error:
        if checkpoint is not None:
            simulation.roll_back(checkpoint)
        elif len(simulation.edits) != edits_before:  # changed in part, with no way back
            raise
        seconds, count = time.perf_counter() - start, passes.count - passes_before
        why = str(error) if isinstance(error, IsobitError) else f"it failed with {type(error).__name__}: {error}"
        warnings.warn(f"{step.name} was left out, for it does not work on this model: {why}", RecipeWarning, 2)
        logger.debug("%s failed", step.name, exc_info=True)
        return StepResult(step.name, "skipped", seconds, count, why=why)
    seconds, count = time.perf_counter() - start, passes.count - passes_before
    if not report.changed:
        why = next(iter(report.left.values()), "")
        return StepResult(step.name, "changed nothing", seconds, count, why=why)
    if judge is None:
        return StepResult(step.name, "kept", seconds, count)
    judge.forget()
    if checkpoint is None or before is None:
        return StepResult(step.name, "kept", seconds, count)
    checkpoint.statistics.forget_rows()
    after = judge.sqnr(following)
    if after < before:
        simulation.roll_back(checkpoint)
        judge.remember(before)
        return StepResult(step.name, "rolled back", seconds, count, before, after, "it made the outputs worse")
    return StepResult(step.name, "kept", seconds, count, before, after, loss)


def _rounds_weights(step: Step) -> bool:
    technique = step.make()
    return isinstance(technique, RoundsWeights) and technique.rounds_weights


class _Judge:
    """Compares the quantized outputs of some samples with those of the model as it came."""

    def __init__(self, simulation: Simulation, passes: Passes, samples: int, calibrator: Calibrator) -> None:
        self._simulation, self._passes, self._calibrator = simulation, passes, calibrator
        self._batches = _first(passes, samples)
        self._float_outputs: Sequence[Outputs] = [simulation.model.run(batch) for batch in self._batches]
        self._sqnr: float | None = None

    def forget(self) -> None:
        """The model has changed: what was measured is of another one."""
        self._sqnr = None

    def remember(self, sqnr: float) -> None:
        """The model is again what it was when this was measured."""
        self._sqnr = sqnr

    def loss(self, step: Step) -> Loss:
        """Whether weights or activations cost the outputs more, before a step that `sqnr` was asked for."""
        context = context_of(self._simulation, self._passes, self._calibrator, f"{step.name} (judging)")
        return find_loss(context, zip(self._batches, self._float_outputs, strict=True))

    def sqnr(self, following: Step | None) -> float:
        """SQNR of the outputs in dB, the mean over the float outputs, as the simulator would have it now.

        The pass of the float model that its ranges need also serves the step that follows.
        """
        if self._sqnr is None:
            context = context_of(self._simulation, self._passes, self._calibrator, "judging")
            requests = Requests() if following is None else requests_of(following.make(), context)
            context.observe(Requests(requests.float, ranges=True), upto=len(self._batches))
            copy = context.quantized_copy()
            self._sqnr = output_sqnr(self._float_outputs, [copy.run(batch) for batch in self._batches])
        return self._sqnr


def _first(passes: Passes, samples: int) -> list[Batch]:
    """Whole batches from the start of the data, until they hold so many samples."""
    taken: list[Batch] = []
    count = 0
    for batch in passes.dataset:
        taken.append(batch)
        count += max((array.shape[0] for array in batch.values() if array.ndim), default=1)
        if count >= samples:
            break
    return taken
