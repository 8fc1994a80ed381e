"""Running a recipe: each step is timed, judged by what it does to the outputs, and rolled back where it hurts."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from isobit.calibration.scheme import Calibrator
from isobit.data import Batch, Dataset
from isobit.recipe import Recipe, Step
from isobit.simulating import simulate

if TYPE_CHECKING:
    from isobit.quantsim import QuantSim

Outputs = Sequence[Mapping[str, NDArray[Any]]]


@dataclass(frozen=True)
class StepResult:
    """What a step did: `outcome` is ``"kept"``, ``"rolled back"``, ``"changed nothing"`` or ``"skipped"``.

    `passes` over the data; `before` and `after` are the SQNR of the outputs in dB, None where nothing was judged.
    """

    step: str
    outcome: str
    seconds: float = 0.0
    passes: float = 0.0
    before: float | None = None
    after: float | None = None
    why: str = ""

    def __str__(self) -> str:
        judged = "" if self.before is None or self.after is None else f", SQNR {self.before:.2f} -> {self.after:.2f} dB"
        why = f": {self.why}" if self.why else ""
        return f"{self.step} {self.outcome}{why} ({self.seconds:.1f} s, {self.passes:.1f} passes{judged})"


def cook(sim: QuantSim, recipe: Recipe, data: Any, calibrator: Calibrator, batch_size: int = 32) -> list[StepResult]:
    """Run the steps of a recipe on a simulator that is not calibrated yet; calibration is left to the caller.

    Raises DataError for an iterator that serves once, when the recipe goes through the data to judge its steps.
    """
    dataset = Dataset(data, sim.graph, batch_size=batch_size)
    if recipe.judge_samples:
        dataset.require_passes(2, f"recipe {recipe.name!r}")
    served = _Served(dataset)
    judge = _Judge(sim, dataset, recipe.judge_samples, calibrator) if recipe.judge_samples else None
    results = []
    for step in recipe.steps:
        obstacle = step.obstacle(sim.plan)
        if obstacle:
            results.append(StepResult(step.name, "skipped", why=obstacle))
        else:
            results.append(_one(sim, step, served, judge, calibrator, batch_size))
    return results


def _one(
    sim: QuantSim, step: Step, served: _Served, judge: _Judge | None, calibrator: Calibrator, batch_size: int
) -> StepResult:
    start, batches = time.perf_counter(), served.batches
    checkpoint = None if judge is None or step.keep else sim.checkpoint()
    (report,) = sim.apply(step.make(calibrator), data=served.again, batch_size=batch_size)
    seconds, passes = time.perf_counter() - start, served.passes_since(batches)
    if not report.changed:
        why = next(iter(report.left.values()), "")
        return StepResult(step.name, "changed nothing", seconds, passes, why=why)
    if judge is None:
        return StepResult(step.name, "kept", seconds, passes)
    before = judge.sqnr
    after = judge.measured(sim)
    if checkpoint is not None and after < before:
        sim.roll_back(checkpoint)
        return StepResult(step.name, "rolled back", seconds, passes, before, after, "it made the outputs worse")
    judge.sqnr = after
    return StepResult(step.name, "kept", seconds, passes, before, after)


class _Served:
    """The data, with a count of the batches that were taken."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self.batches = 0
        self._per_pass = len(dataset)

    def again(self) -> Iterator[Batch]:
        """One pass."""
        count = 0
        for batch in self._dataset:
            self.batches += 1
            count += 1
            yield batch
        self._per_pass = count

    def passes_since(self, batches: int) -> float:
        """How often the data was gone through since that many batches had been taken."""
        return (self.batches - batches) / self._per_pass if self._per_pass else 0.0


class _Judge:
    """Compares the quantized outputs of some samples with those of the model as it came."""

    def __init__(self, sim: QuantSim, dataset: Dataset, samples: int, calibrator: Calibrator) -> None:
        self._batches = _first(dataset, samples)
        self._calibrator = calibrator
        self._wanted: Outputs = [sim.backend_model.run(batch) for batch in self._batches]
        self.sqnr = self.measured(sim)

    def measured(self, sim: QuantSim) -> float:
        """SQNR of the outputs in dB, the mean over the float outputs, as the simulator would have it now."""
        plan = sim.working_plan()
        data = Dataset(self._batches, sim.graph)
        twin = simulate(sim.backend_model, plan, data, self._calibrator)
        return output_sqnr(self._wanted, [twin.run(batch) for batch in self._batches])


def _first(dataset: Dataset, samples: int) -> list[Batch]:
    """Whole batches from the start of the data, until they hold so many samples."""
    taken: list[Batch] = []
    seen = 0
    for batch in dataset:
        taken.append(batch)
        seen += max((array.shape[0] for array in batch.values() if array.ndim), default=1)
        if seen >= samples:
            break
    return taken


def output_sqnr(wanted: Outputs, found: Outputs) -> float:
    """Signal to quantization noise in dB: mean over the float outputs; 200 where nothing differs."""
    values = []
    for name, first in wanted[0].items():
        if first.dtype.kind != "f":
            continue
        signal = sum(float(np.square(batch[name], dtype=np.float64).sum()) for batch in wanted)
        pairs = zip(wanted, found, strict=True)
        noise = sum(float(np.square(a[name] - b[name], dtype=np.float64).sum()) for a, b in pairs)
        values.append(200.0 if noise == 0 else float(10 * np.log10(max(signal, 1e-300) / noise)))
    return float(np.mean(values)) if values else 200.0
