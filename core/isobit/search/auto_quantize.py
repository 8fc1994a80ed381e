"""`isobit.auto_quantize`: recipes, ranges and formats are tried in turn until one holds the drop."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from isobit.analysis.analyze import first_batches
from isobit.data import Dataset
from isobit.errors import FormatError, ModelError
from isobit.plugins import registry
from isobit.quantsim.executor import ExecutorLike
from isobit.quantsim.judging.evaluate import Evaluate, check_evaluate, identity_of
from isobit.quantsim.judging.judge import Judge
from isobit.quantsim.quantize import open_on
from isobit.quantsim.quantsim import QuantSim
from isobit.search.attempts import Attempts, Settings
from isobit.search.auto_result import Attempt, AutoResult
from isobit.search.cost_tables import cost_table
from isobit.search.formats import listed, parse_candidates
from isobit.search.held_back import Parts, divide
from isobit.search.journal import Journal
from isobit.search.scoring import Scorer
from isobit.version import __version__

#: Samples on which the errors of quantizers are measured.
_SAMPLES = 32


def auto_quantize(
    model: Any,
    data: Any,
    evaluate: Evaluate | None = None,
    *,
    max_drop: float = 0.01,
    minutes: float | None = None,
    journal: str | PathLike[str] | None = None,
    executor: ExecutorLike | None = None,
    candidates: Iterable[str] | None = None,
    cost: str | Mapping[str, float] = "bits",
    evaluations: int = 12,
    example_inputs: Any = None,
    batch_size: int = 32,
    inputs: Callable[[Any], Any] | None = None,
    ignore_non_finite: bool = False,
    progress: bool | None = None,
    on_best: Callable[[QuantSim, Attempt], None] | None = None,
    **settings: Any,
) -> AutoResult:
    """Quantize a trained model so that its score drops by `max_drop` at most, and say how that was found.

    Tried in turn, each because of what came before: the default recipe; ``ptq``; ``transformer`` where there are layer
    norms; the ranges that an analysis advises; mixed precision (`isobit.mixed_precision`, whose `candidates`, `cost`
    and `evaluations` these are). The first that holds the drop is returned, else the best. What is returned was
    measured: by `evaluate`, which takes a model (a function from a batch to the outputs by name) and returns a number,
    the higher the better, or by agreement with the float model on every fourth batch of `data`, which nothing else
    sees. Of several numbers by name, as one for each output, each must hold the drop. An `evaluate` that gives another
    figure each time is measured: then the drop holds with its margin.

    After `minutes` the attempt that is running ends at its next batch, layer or step; the first is always made, and an
    `evaluate` that runs is waited for. `on_best` gets each simulator that is better than those before.
    `journal` is a file of JSON lines, with the simulators that recipes made beside it: a run that was
    killed goes on from it, to the same result. One of another `evaluate` is refused; what that calls is not compared.
    `settings` are those of QuantSim, the others those of `isobit.quantize`; a QuantSim in place of the model has its
    own, and stays as it is.

    Raises EvaluateError for an `evaluate` that says nothing, DataError for a journal of another model, data or
    settings, and what `isobit.quantize` raises.
    """
    _check(max_drop, minutes)
    if evaluate is not None:
        check_evaluate(evaluate, picklable=executor is not None)
    if isinstance(model, QuantSim):
        if settings or example_inputs is not None:
            raise ModelError(
                f"a QuantSim has its settings already: leave out {', '.join(settings) or 'example_inputs'}"
            )
        pristine = QuantSim.of_simulation(model.simulation.copy())
        pristine.simulation.remove_quantizers()
    else:
        data_of = partial(Dataset, data, batch_size=batch_size, inputs=inputs, ignore_non_finite=ignore_non_finite)
        pristine = open_on(data, data_of, model, example_inputs, inputs=inputs, **settings)
    wanted = None if candidates is None else listed(candidates)
    cost_table(cost, pristine.target, parse_candidates(pristine.simulation, wanted))
    parts = divide(
        data,
        pristine.graph,
        hold_back=evaluate is None,
        batch_size=batch_size,
        inputs=inputs,
        ignore_non_finite=ignore_non_finite,
    )
    asked = repr((wanted, cost, evaluations, batch_size, ignore_non_finite, pristine.simulation.config))
    record = Journal(None if journal is None else Path(fspath(journal)), _header(pristine, parts, evaluate, asked))
    exact = pristine.backend_model.copy()
    backend = None if executor is None else registry().backend_for(pristine.model)
    judge = Judge.of(exact, parts.judged)
    scorer = Scorer(exact, judge, evaluate, executor=executor, backend=backend, record=record)
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    attempts = Attempts(
        pristine,
        parts.calibration,
        first_batches(Dataset(parts.calibration, pristine.graph, ignore_non_finite=ignore_non_finite), _SAMPLES)[0],
        scorer,
        record,
        Settings(
            max_drop,
            wanted,
            cost,
            evaluations,
            ignore_non_finite,
            executor,
            progress,
            deadline,
            on_best,
        ),
    )
    attempts.run()
    return AutoResult(
        attempts.sim,
        attempts.best,
        attempts.best.outcome == "holds",
        max_drop,
        scorer.float_score.value,
        tuple(attempts.made),
        attempts.why,
        _measured_on(parts, evaluate, scorer),
        attempts.mixed,
        tuple(attempts.notes),
        scorer.float_score.figures,
    )


def _check(max_drop: float, minutes: float | None) -> None:
    if not 0 <= max_drop < float("inf"):
        raise FormatError(f"max_drop is how much the score may fall, a number from 0, not {max_drop!r}")
    if minutes is not None and not minutes > 0:
        raise FormatError(f"minutes must be above 0, not {minutes!r}")


def _header(sim: QuantSim, parts: Parts, evaluate: Any, asked: str) -> dict[str, str]:
    return {
        "isobit": __version__,
        "model": sim.simulation.state_fingerprint(),
        "data": parts.digest,
        "target": hashlib.blake2b(sim.target.text.encode(), digest_size=16).hexdigest(),
        "settings": hashlib.blake2b(asked.encode(), digest_size=16).hexdigest(),
        "evaluate": "agreement with float" if evaluate is None else identity_of(evaluate),
    }


def _measured_on(parts: Parts, evaluate: Any, scorer: Scorer) -> str:
    if evaluate is not None:
        spread = scorer.float_score.spread
        noise = f", which differs by {spread:.2g} from run to run" if spread else ""
        return f"your evaluate{noise}"
    kind = "held back from calibration" if parts.is_held_back else "of the calibration data, which is one batch"
    return f"agreement with the float model, {parts.samples} samples {kind}"
