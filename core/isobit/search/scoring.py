"""How good a model is: by the user's `evaluate`, whose own noise is measured, or by agreement with the float model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from isobit.backend.checked_model import CheckedModel
from isobit.backend.contract import Backend
from isobit.errors import EvaluateError
from isobit.quantsim.executor import ExecutorLike
from isobit.quantsim.judging.evaluate import Evaluate, figures_of
from isobit.quantsim.judging.figures import Figures, mean_figures, require_numbers, score_of
from isobit.quantsim.judging.judge import Judge, mean

#: Runs of an `evaluate` that gives another figure each time: of the float model, and of others.
_FLOAT_RUNS, _RUNS = 4, 3

#: How often a pool of workers that breaks is made again, where a callable makes it.
_TRIES = 2

#: Standard errors within which a drop is taken to lie.
_ERRORS = 2.0


@dataclass(frozen=True)
class Score:
    """A figure, the higher the better: the mean of `runs`, which differ by `spread` (standard deviation).

    `sqnr` is how near the outputs are to those of the float model, in dB. `figures` is what `evaluate` returned, the
    mean of its runs: the value itself, or several by name, of which the one that falls most decides.
    """

    value: float
    sqnr: float
    runs: int = 1
    spread: float = 0.0
    figures: Figures | None = None

    def drop_from(self, float_score: Score) -> tuple[float, float]:
        """How much worse than the float model, and by how much that may be off."""
        spread = max(self.spread, float_score.spread)
        margin = _ERRORS * spread * math.sqrt(1 / float_score.runs + 1 / self.runs)
        return float_score.value - self.value, margin


class Record(Protocol):
    """Where scores are kept for another day."""

    def score(self, key: str) -> Score | None:
        """The score of an earlier run."""
        ...

    def keep_score(self, key: str, score: Score) -> None:
        """Keep one."""
        ...


class Scorer:
    """Scores models. `count` is how many were evaluated."""

    def __init__(
        self,
        exact: CheckedModel,
        judge: Judge,
        evaluate: Evaluate | None = None,
        *,
        executor: ExecutorLike | None = None,
        backend: Backend | None = None,
        record: Record | None = None,
    ) -> None:
        self.evaluate, self.judge, self.count = evaluate, judge, 0
        self._exact, self._executor, self._backend, self._record = exact, executor, backend, record
        self._float: Score | None = None

    @property
    def what(self) -> str:
        """What the figures are, in words."""
        return "agreement with the float model" if self.evaluate is None else "evaluate"

    @property
    def float_score(self) -> Score:
        """That of the float model. An `evaluate` that gives two figures for it is run twice more.

        Raises EvaluateError for a figure that is none.
        """
        if self._float is None:
            self._float = self._recalled("float") or self._scored_float()
            self._keep("float", self._float)
        return self._float

    def scores(self, models: Sequence[tuple[str, Callable[[], CheckedModel]]]) -> list[Score]:
        """The scores of models, each with a key that says what it is; those that are known are not made."""
        float_score = self.float_score
        found = {key: self._recalled(key) for key, _ in models}
        made = {key: make() for key, make in models if found[key] is None}
        figures = self._figures(list(made.values()), 1 if not float_score.spread else _RUNS)
        for (key, model), runs in zip(made.items(), figures, strict=True):
            sqnr = mean(self.judge.ratios(model))
            exact = float_score.value if float_score.figures is None else float_score.figures
            value, means = agreement(sqnr), None
            if runs is not None:
                value, means = float(np.mean([score_of(run, exact) for run in runs])), mean_figures(runs)
            value = value if math.isfinite(value) else -math.inf
            score = Score(value, sqnr, len(runs or [0]), float_score.spread, means)
            found[key] = score
            self._keep(key, score)
        self.count += len(models)
        return [known for key, _ in models if (known := found[key]) is not None]

    def _scored_float(self) -> Score:
        if self.evaluate is None:
            return Score(1.0, math.inf)
        runs = self._figures([self._exact], 2)[0] or []
        is_same = runs[0] == runs[1]
        if not is_same:
            runs += self._figures([self._exact], _FLOAT_RUNS - 2)[0] or []
        for run in runs:
            require_numbers(run)
        if is_same:
            return Score(score_of(runs[0], runs[0]), math.inf, figures=runs[0])
        exact = mean_figures(runs)
        values = [score_of(run, exact) for run in runs]
        return Score(float(np.mean(values)), math.inf, len(values), float(np.std(values, ddof=1)), exact)

    def _figures(self, models: Sequence[CheckedModel], runs: int) -> list[list[Figures] | None]:
        """What `evaluate` says of each model, so often; None without one."""
        if self.evaluate is None:
            return [None] * len(models)
        if self._executor is None or self._backend is None:
            return [[figures_of(self.evaluate, model) for _ in range(runs)] for model in models]
        tries = 1 if isinstance(self._executor, Executor) else _TRIES
        states = [model.state() for model in models]
        return _on_workers(self._executor, self._backend, states, self.evaluate, runs, tries)

    def _recalled(self, key: str) -> Score | None:
        return None if self._record is None else self._record.score(key)

    def _keep(self, key: str, score: Score) -> None:
        if self._record is not None and self._record.score(key) is None:
            self._record.keep_score(key, score)


def agreement(sqnr: float) -> float:
    """1 without noise: one less the energy of the noise in that of the outputs; 0.99 is 20 dB."""
    return max(1 - 10 ** (-sqnr / 10), -1e9) if sqnr > -math.inf else -math.inf


def evaluate_state(backend: Backend, state: bytes, evaluate: Evaluate) -> Figures:
    """In a worker: what `evaluate` says of a model that comes as its state."""
    return figures_of(evaluate, CheckedModel.of(backend.restore(state)))


def _on_workers(
    pool: ExecutorLike, backend: Backend, states: Sequence[bytes], evaluate: Evaluate, runs: int, tries: int
) -> list[list[Figures] | None]:
    """The figures of several models side by side. Raises EvaluateError where workers die."""
    try:
        with _running(pool) as executor:
            futures: list[list[Future[Figures]]] = [
                [executor.submit(evaluate_state, backend, state, evaluate) for _ in range(runs)] for state in states
            ]
            return [[future.result() for future in several] for several in futures]
    except BrokenExecutor as error:
        if tries == 1:
            raise EvaluateError(
                "a worker of the executor died while evaluate ran: it was killed, as for want of memory, or evaluate "
                "ended it; fewer workers need less memory, and without an executor evaluate runs in this process"
            ) from error
    return _on_workers(pool, backend, states, evaluate, runs, tries - 1)


@contextmanager
def _running(executor: ExecutorLike) -> Iterator[Executor]:
    if isinstance(executor, Executor):
        yield executor
        return
    with executor() as made:
        yield made


def digest_key(overrides: Mapping[str, str | None]) -> str:
    """A short text that names a choice of formats."""
    import hashlib
    import json

    return hashlib.blake2b(json.dumps(dict(overrides), sort_keys=True).encode(), digest_size=8).hexdigest()
