"""Running a recipe: each step is timed, judged by what it does to the outputs, and rolled back where it hurts."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from itertools import islice

from isobit.calibration.scheme import Calibrator
from isobit.deadline import check_time
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
from isobit.quantsim.apply import apply_technique, needs_own_pass
from isobit.quantsim.judging.judge import is_better, mean
from isobit.quantsim.judging.judge_steps import StepJudge
from isobit.quantsim.observe import Passes
from isobit.quantsim.simulation import Simulation
from isobit.recipes.recipe import Recipe, Step, StepResult
from isobit.techniques.technique import RoundsWeights
from isobit.warn import warn

logger = logging.getLogger(__name__)

#: Errors of the data, the model or the machine, which no other step would be without.
_NOT_OF_THE_STEP = (
    *(DataError, FormatError, ModelError, PluginError, OutputError, RecipeError, TargetError),
    MemoryError,
)


def run_recipe(simulation: Simulation, recipe: Recipe, passes: Passes, calibrator: Calibrator) -> None:
    """Run the steps of a recipe on a simulation that is not calibrated yet; calibration is left to the caller.

    Their results go into ``simulation.steps``. Raises DataError for an iterator that serves once, before anything runs,
    when the recipe goes through the data more than once, but for steps that are optional.
    """
    obstacles = [_obstacle(step, simulation, passes) for step in recipe.steps]
    running = [step for step, obstacle in zip(recipe.steps, obstacles, strict=True) if not obstacle]
    is_judged = recipe.judge_samples > 0 and not all(step.keep for step in running)
    times = sum(needs_own_pass(step.make()) for step in running) + (2 if is_judged else 0) + 1
    passes.dataset.require_passes(times, f"recipe {recipe.name!r}, with calibration,")
    judge = StepJudge(simulation, recipe, passes, calibrator) if is_judged else None
    results = []
    for index, (step, obstacle) in enumerate(zip(recipe.steps, obstacles, strict=True)):
        check_time()
        later = [other for other in recipe.steps[index + 1 :] if other in running]
        if obstacle:
            results.append(StepResult(step.name, "skipped", why=obstacle))
        elif judge is not None and not step.keep:
            judge.prepare()
            results.append(_run_step(simulation, step, later, judge.passes, judge, calibrator))
        else:
            results.append(_run_step(simulation, step, later, passes, None, calibrator))
            if judge is not None:
                judge.forget()
        logger.info("recipe %s: %s", recipe.name, results[-1])
    simulation.steps = results


def _obstacle(step: Step, simulation: Simulation, passes: Passes) -> str:
    """Why a step does not run, or an empty text."""
    if step.optional and passes.dataset.is_one_shot and needs_own_pass(step.make()):
        return "the data serves once, and it needs a pass of its own"
    return step.obstacle(simulation.plan)


def _run_step(
    simulation: Simulation,
    step: Step,
    later: Sequence[Step],
    passes: Passes,
    judge: StepJudge | None,
    calibrator: Calibrator,
) -> StepResult:
    start, passes_before, edits_before = time.perf_counter(), passes.count, len(simulation.edits)
    before, loss = None, ""
    try:
        if judge is not None:
            judge.observe(step, later)
            if _rounds_weights(step):
                found = judge.loss()
                loss = str(found)
                if not found.is_of_weights:
                    return StepResult(step.name, "skipped", why=f"weights are not the loss: {loss}")
            before = judge.state()
        report = apply_technique(simulation, step.make(), passes, calibrator)
    except _NOT_OF_THE_STEP:
        raise
    except Exception as error:
        if before is not None:
            simulation.roll_back(before.checkpoint)
        elif len(simulation.edits) != edits_before:  # changed in part, with no way back
            raise
        seconds, count = time.perf_counter() - start, passes.count - passes_before
        why = str(error) if isinstance(error, IsobitError) else f"it failed with {type(error).__name__}: {error}"
        warn(f"{step.name} was left out, for it does not work on this model: {why}", RecipeWarning)
        logger.debug("%s failed", step.name, exc_info=True)
        return StepResult(step.name, "skipped", seconds, count, why=why)
    if not report.changed:
        why = "; ".join(f"{name}: {reason}" for name, reason in islice(report.left.items(), 1))
        why += f" (and {len(report.left) - 1} more)" if len(report.left) > 1 else ""
        return StepResult(
            step.name, "changed nothing", time.perf_counter() - start, passes.count - passes_before, why=why
        )
    figures: tuple[float | None, float | None] = (None, None)
    is_worse = False
    if judge is not None and before is not None:
        was, now = judge.before(before, later), judge.after(later)
        figures, is_worse = (mean(was), mean(now)), not is_better(now, was, step.min_gain)
    seconds, count = time.perf_counter() - start, passes.count - passes_before
    if before is not None and judge is not None and is_worse:
        simulation.roll_back(before.checkpoint)
        judge.rolled_back()
        why = "it made the outputs no better" + (f" by {step.min_gain:g} dB" if step.min_gain else "")
        return StepResult(step.name, "rolled back", seconds, count, *figures, why)
    return StepResult(step.name, "kept", seconds, count, *figures, loss)


def _rounds_weights(step: Step) -> bool:
    technique = step.make()
    return isinstance(technique, RoundsWeights) and technique.rounds_weights
