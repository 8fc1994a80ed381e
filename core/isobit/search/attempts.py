"""What `auto_quantize` tries, in which order and why: each attempt follows from those before it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from isobit.analysis.analysis import Analysis
from isobit.analysis.analyze import analyze
from isobit.analysis.findings import LEAST
from isobit.data import Batch, Dataset
from isobit.deadline import TimeIsOver, until
from isobit.defaults import DEFAULT_RECIPE
from isobit.encodings.encoding import Encoding
from isobit.errors import DataError, EvaluateError, IsobitError, OutputError
from isobit.graph.sites import Site
from isobit.plugins import registry
from isobit.quantsim.executor import ExecutorLike
from isobit.quantsim.judging.figures import figures_text, without_number
from isobit.quantsim.kept_simulator import can_be_kept, keep, restored
from isobit.quantsim.quantize import quantize
from isobit.quantsim.quantsim import QuantSim
from isobit.search.auto_result import Attempt, Outcome
from isobit.search.choose import Goal, choose
from isobit.search.journal import Journal
from isobit.search.mixed_result import MixedPrecision
from isobit.search.scoring import Score, Scorer

#: Errors after which no other attempt would fare better.
_FATAL = (DataError, EvaluateError, OutputError)

#: What the journal says of an attempt elsewhere: its name, and what is in the line of its score.
_ELSEWHERE = frozenset({"name", "score", "sqnr", "drop", "figures"})

#: What `transformer` is for.
_NORMS = frozenset({"LayerNormalization", "RMSNormalization"})


@dataclass(frozen=True)
class Settings:
    """What was asked."""

    max_drop: float
    candidates: tuple[str, ...] | None
    cost: str | Mapping[str, float]
    evaluations: int
    ignore_non_finite: bool
    executor: ExecutorLike | None
    progress: bool | None
    deadline: float | None
    on_best: Callable[[QuantSim, Attempt], None] | None

    def is_over(self) -> bool:
        """Whether the deadline, a `time.monotonic()`, has passed."""
        return self.deadline is not None and time.monotonic() > self.deadline


class _Made:
    """A simulator that is made when it is asked for: a journal may know its score already."""

    def __init__(self, make: Callable[[], QuantSim]) -> None:
        self._make = make

    @cached_property
    def sim(self) -> QuantSim:
        """The simulator."""
        return self._make()


class Attempts:
    """The attempts that were made, and the best of them."""

    def __init__(
        self,
        pristine: QuantSim,
        calibration: Any,
        batches: Sequence[Batch],
        scorer: Scorer,
        journal: Journal,
        settings: Settings,
    ) -> None:
        self.made: list[Attempt] = []
        self.notes: list[str] = []
        self.mixed: MixedPrecision | None = None
        self.why = ""
        self._pristine, self._calibration, self._batches = pristine, calibration, batches
        self._scorer, self._journal, self._settings = scorer, journal, settings
        self._best: tuple[float, Attempt, _Made] | None = None
        self._sims: dict[str, _Made] = {}

    @property
    def best(self) -> Attempt:
        """The one that holds the drop, else the one with the best score."""
        assert self._best is not None  # the first attempt raises where it fails
        return self._best[1]

    @property
    def sim(self) -> QuantSim:
        """The simulator of the best attempt."""
        assert self._best is not None
        return self._best[2].sim

    def run(self) -> None:
        """Try until one holds, all is tried, or the time is over."""
        steps: tuple[Callable[[], bool], ...] = (
            self._default,
            self._ptq,
            self._transformer,
            self._ranges,
            self._formats,
        )
        for step in steps:
            if self.made and self._settings.is_over():
                self.why = f"the time is over; the best until then is {self.best.name}: {self.best.result}"
                return
            if self._runs(step):
                self.why = f"{self.best.name} holds a drop of {self._settings.max_drop:g}: {self.best.result}"
                return
        self.why = (
            f"nothing that was tried holds a drop of {self._settings.max_drop:g}; the best is {self.best.name}: "
            f"{self.best.result}"
        )

    def _runs(self, step: Callable[[], bool]) -> bool:
        """Make an attempt; the first is never cut off, so that there is something to return."""
        try:
            with until(self._settings.deadline if self.made else None):
                return step()
        except TimeIsOver:
            self.notes.append("the attempt that was running was cut off, for the time was over")
            return False

    # --- the attempts, each returns whether it holds ------------------------------------------------------------------

    def _default(self) -> bool:
        return self._try(DEFAULT_RECIPE, "what is done unless said", lambda: self._quantized(DEFAULT_RECIPE))

    def _ptq(self) -> bool:
        why = f"{self.best.name} does not hold; every step of this recipe is judged by the outputs, rounding too"
        return self._try("ptq", why, lambda: self._quantized("ptq"))

    def _transformer(self) -> bool:
        if not any(node.op in _NORMS for node in self._pristine.graph.nodes):
            self.notes.append("transformer was not tried: there are no layer norms, behind which channels grow large")
            return False
        why = "there are layer norms, behind which a few channels grow large"
        return self._try("transformer", why, lambda: self._quantized("transformer"))

    def _ranges(self) -> bool:
        name, made = self.best.name, self._sims[self.best.name]
        found = analyze(
            made.sim, self._calibration, samples=16, checks=5, ignore_non_finite=self._settings.ignore_non_finite
        )
        changes = _ranges(found)
        self.notes.append(
            f"analysis of {name}: weights alone {found.weights_alone:.1f} dB, activations alone "
            f"{found.activations_alone:.1f} dB"
        )
        if not changes:
            self.notes.append("ranges were not changed: no other range of the worst quantizers gains anything")
            return False

        def make() -> QuantSim:
            sim = QuantSim.of_simulation(made.sim.simulation.copy())
            sim.load_encodings(changes, freeze=True)
            return sim

        why = f"other ranges of {len(changes)} tensors gained in the analysis of {name}"
        return self._try(f"{name}, other ranges", why, make)

    def _formats(self) -> bool:
        name = self._base_of_formats()
        made, settings = self._sims[name], self._settings

        def make() -> QuantSim:
            goal = Goal(None, settings.max_drop, settings.evaluations, settings.is_over)
            simulation = made.sim.simulation
            self.mixed = choose(
                simulation, self._batches, self._scorer, goal, settings.candidates, settings.cost, f"{name}, mixed"
            )
            return self.mixed.sim

        why = f"{name} is the best with one format, and wider ones for a few layers repair most"
        return self._try(f"{name}, mixed precision", why, make, lambda: self._score_of_mixed())

    def _score_of_mixed(self) -> Score:
        """That of the point which was chosen: it was measured in the search."""
        assert self.mixed is not None
        point, spread = self.mixed.chosen, self._scorer.float_score.spread
        assert point.score is not None
        assert point.sqnr is not None
        return Score(point.score, point.sqnr, self.mixed.runs, spread, point.figures)

    # --- inside ----------------------------------------------------------------------------------------------------

    def _base_of_formats(self) -> str:
        """The best whose weights are free to have another format, else the best: rounded ones are frozen."""
        free = [a for a in self.made if a.score is not None and not self._sims[a.name].sim.frozen]
        best = max(free, key=lambda attempt: attempt.score or 0.0, default=self.best)
        return best.name

    def _quantized(self, recipe: str) -> QuantSim:
        """The simulator of a recipe, or the one that an earlier run made, which is beside the journal."""
        settings, pristine = self._settings, self._pristine.simulation
        path = self._journal.file_beside(recipe, "sim") if can_be_kept(pristine) else None
        known = None if path is None else restored(pristine, path, self._dataset())
        if known is not None:
            return QuantSim.of_simulation(known)
        # One that holds samples back takes them from what it observes: its statistics are made anew.
        holds_back = registry().recipe(recipe).hold_back
        observed = None if holds_back else self._journal.file_beside(recipe, "npz")
        sim = quantize(
            QuantSim.of_simulation(pristine.copy()),
            self._calibration,
            recipe=recipe,
            ignore_non_finite=settings.ignore_non_finite,
            executor=settings.executor,
            progress=settings.progress,
            resume=observed,
        )
        if path is not None:
            keep(sim.simulation, path)
            if observed is not None:  # they are in the simulator's file too
                observed.unlink(missing_ok=True)
        return sim

    def _dataset(self) -> Dataset:
        graph, ignored = self._pristine.graph, self._settings.ignore_non_finite
        return Dataset(self._calibration, graph, ignore_non_finite=ignored)

    def _try(
        self, name: str, why: str, make: Callable[[], QuantSim], score_of: Callable[[], Score] | None = None
    ) -> bool:
        """Make a simulator and score it, or take what the journal knows of it."""
        made, start = _Made(make), time.monotonic()
        try:
            if score_of is None:
                score = self._scorer.scores([(name, lambda: made.sim.backend_model)])[0]
            else:
                _ = made.sim
                score = score_of()
        except IsobitError as error:
            if not self.made or isinstance(error, _FATAL):
                raise
            self._note(Attempt(name, why, "failed", f"it failed: {error}", seconds=self._seconds(name, start)))
            return False
        drop, margin = score.drop_from(self._scorer.float_score)
        outcome: Outcome = "holds" if drop + margin <= self._settings.max_drop + 1e-12 else "does not hold"
        give_or_take = f" ± {margin:.2g}" if margin else ""
        several = "" if score.figures is None else figures_text(score.figures)
        figure = several or f"{score.value:.6g}"
        largest = "the largest drop" if several else "a drop of"
        result = f"{self._scorer.what} {figure}, {largest} {drop:.4g}{give_or_take}, {score.sqnr:.1f} dB"
        seconds = self._seconds(name, start)
        attempt = Attempt(
            name, why, outcome, result, score.value, score.sqnr, drop, margin, seconds, figures=score.figures
        )
        if not math.isfinite(score.value):
            what = "its outputs are" if self._scorer.evaluate is None else "evaluate returned"
            odd = "" if score.figures is None else without_number(score.figures)
            result = f"it failed: {what} {odd or 'no finite number'}"
            attempt = Attempt(name, why, "failed", result, seconds=attempt.seconds)
        self._sims[name] = made
        self._note(attempt)
        if self._best is None or score.value > self._best[0] or outcome == "holds":
            self._best = (score.value, attempt, made)
            if self._settings.on_best is not None:
                self._settings.on_best(made.sim, attempt)
        return outcome == "holds"

    def _seconds(self, name: str, start: float) -> float:
        known = self._journal.seconds(name)
        return round(time.monotonic() - start, 1) if known is None else known

    def _note(self, attempt: Attempt) -> None:
        self.made.append(attempt)
        record = {key: value for key, value in asdict(attempt).items() if key not in _ELSEWHERE}
        self._journal.keep_attempt(attempt.name, record)


def _ranges(found: Analysis) -> dict[Site, Encoding]:
    """The ranges that were tried and gained."""
    good = [a for a in found.advice if a.change == "range" and (a.measured or 0.0) >= LEAST]
    return {site: encoding for advice in good for site, encoding in advice.encodings.items() if encoding is not None}
