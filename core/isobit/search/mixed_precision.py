"""`isobit.mixed_precision`: a format for each group of quantizers, by an integer program, checked by a few runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from isobit.analysis.analyze import first_batches
from isobit.analysis.measure_errors import copies
from isobit.data import Dataset
from isobit.errors import DataError, FormatError
from isobit.plugins import registry
from isobit.quantsim.executor import ExecutorLike
from isobit.quantsim.judging.evaluate import Evaluate, check_evaluate
from isobit.quantsim.judging.judge import Judge
from isobit.quantsim.quantsim import QuantSim
from isobit.search.choose import Goal, choose
from isobit.search.mixed_result import MixedPrecision
from isobit.search.scoring import Scorer


def mixed_precision(
    sim: QuantSim,
    data: Any = None,
    *,
    candidates: Iterable[str] | None = None,
    evaluate: Evaluate | None = None,
    budget: float | None = None,
    max_drop: float | None = None,
    cost: str | Mapping[str, float] = "bits",
    evaluations: int = 12,
    samples: int = 32,
    batch_size: int = 16,
    inputs: Callable[[Any], Any] | None = None,
    ignore_non_finite: bool = False,
    executor: ExecutorLike | None = None,
) -> MixedPrecision:
    """Choose a format for each group of quantizers of a calibrated simulator.

    `candidates` are formats such as ``"int8"`` (8 bits of the target's kinds of integers), ``"uint16 x int8"``
    (activations, weights) and ``"float"``; of int8, int16 and float those that the target has unless said. What one
    operation reads, what shares a grid and what runs as one has one format. Costs are those of the operations and of
    the conversions between formats: ``"bits"`` (multiply-adds times the bits of both operands), ``"bytes"`` of weights,
    ``"milliseconds"`` of the target's table, or a table of your own, ``{"int8": 1, "float": 4, "conversion": 16}``.

    Either `budget`, the most that it may cost in that unit, or `max_drop`, the most that the score may be below the
    float model's (0.01 unless said). `evaluate` takes a model, a function from a batch to the outputs by name, and
    returns a number, the higher the better, or several by name, as one for each output: the drop is the largest fall of
    them. Without it the score is one less the share of noise in the energy of the
    outputs, so that 0.01 is 20 dB. At most `evaluations` models are run on it, on an `executor` side by side.

    `data` are `samples` samples on which errors are measured; without it those that the simulator kept. The simulator
    stays as it is. Raises FormatError for candidates that the target cannot run, or too few of them; ModelError for a
    simulator that is not calibrated; DataError without data, statistics, or a budget that can be met; EvaluateError for
    an `evaluate` that says nothing.
    """
    if budget is not None and max_drop is not None:
        raise FormatError("either a budget or a max_drop: the one is bounded, and the other made as small as it gets")
    if evaluations < 1:
        raise FormatError(f"at least 1 evaluation tells what is returned, not {evaluations}")
    if evaluate is not None:
        check_evaluate(evaluate, picklable=executor is not None)
    simulation = sim.simulation
    simulation.require_quantizers()
    if data is not None:
        dataset = Dataset(
            data, sim.graph, batch_size=min(batch_size, samples), inputs=inputs, ignore_non_finite=ignore_non_finite
        )
        batches = first_batches(dataset, samples)[0]
    elif simulation.judge is not None:
        batches = [batch for batch, _ in simulation.judge.samples]
    else:
        raise DataError("the simulator kept no samples (it was loaded from a file): pass data")
    exact, _ = copies(simulation)
    backend = None if executor is None else registry().backend_for(sim.model)
    scorer = Scorer(exact, Judge.of(exact, batches), evaluate, executor=executor, backend=backend)
    goal = Goal(budget, 0.01 if max_drop is None else max_drop, evaluations)
    return choose(simulation, batches, scorer, goal, candidates, cost)
