"""A stage: methods that share the layers choose sizes under a budget, and the best choice is carried out."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from isobit.backend.checked_model import CheckedModel
from isobit.budget import Candidate, Cost, CurvePoint, Pick, Selection, curve, layer_costs, select_ratios
from isobit.budget.select_ratios import with_errors
from isobit.compression.compression_report import CompressedLayer, Trial
from isobit.compression.in_sequence import solved_in_sequence
from isobit.compression.wishes import Wishes
from isobit.errors import DataError
from isobit.graph.graph import Graph
from isobit.graph.ops import RECURRENT, WEIGHTED
from isobit.quantsim.judging.evaluate import Evaluate, figures_of
from isobit.quantsim.judging.figures import Figures, score_of, without_number
from isobit.quantsim.judging.judge import Judge, mean
from isobit.recipes.recipe import Step
from isobit.statistics.statistics import observed
from isobit.targets.costs import Costs
from isobit.techniques.context import FLOAT, Requests, TechniqueContext
from isobit.techniques.technique import Compresses, CostsTogether, Observes, TechniqueReport

logger = logging.getLogger(__name__)

#: How near the cost must come to what was asked, and how often the budget is set anew where candidates' figures are off
#: (layers that read each other save more together than each alone).
_NEAR, _CORRECTIONS, _RECKONINGS = 0.01, 4, 16

#: Sizes of each candidate that the greedy selection evaluates, evenly spread.
_EVALUATED = 10

#: How choices of sizes differ that are carried out and judged: by which selection, and the power of the losses.
_VARIANTS = (
    ("integer-program", 1.0, "the least sum of losses"),
    ("integer-program", 2.0, "the least sum of squared losses"),
    ("greedy", 1.0, "losses below one bound"),
    ("integer-program", 0.5, "the least sum of roots of losses"),
)


@dataclass(frozen=True, eq=False)
class Done:
    """The model after a stage, how that was done, and what is to be told."""

    model: CheckedModel
    cost: Cost
    steps: tuple[Step, ...] = ()
    reports: tuple[TechniqueReport, ...] = ()
    layers: tuple[CompressedLayer, ...] = ()
    left: Mapping[str, str] = field(default_factory=dict)
    trials: tuple[Trial, ...] = ()
    points: tuple[CurvePoint, ...] = ()
    layer_curves: Mapping[str, tuple[tuple[float, float], ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Judging:
    """By what choices are compared: the user's `evaluate`, else how near outputs are to those of the first model."""

    def __init__(self, model: CheckedModel, evaluate: Evaluate | None) -> None:
        self._model, self._evaluate = model, evaluate  # stages work on copies of it
        self._judge: Judge | None = None
        self._outputs: Judge | None = None
        self._exact: Figures | None = None  # those of the first model
        self.count = 0
        self.before = None if evaluate is None else self._evaluated(self._model)

    @property
    def by(self) -> str:
        """``"evaluate"``, ``"outputs"``, or an empty text where there is nothing to judge by."""
        return "evaluate" if self._evaluate is not None else "outputs" if self._judge is not None else ""

    def see(self, context: TechniqueContext) -> None:
        """Compare outputs on the first samples of the data, once there are some."""
        head = () if context.dataset is None else context.dataset.head
        if self._evaluate is None and self._judge is None and head:
            self._judge = Judge.of(self._model, head)

    def of_outputs(self, context: TechniqueContext) -> Judge | None:
        """What compares outputs on the first samples, whatever else choices are judged by; None without data."""
        self.see(context)
        if self._judge is not None:
            return self._judge
        head = () if context.dataset is None else context.dataset.head
        if self._outputs is None and head:
            self._outputs = Judge.of(self._model, head)
        return self._outputs

    def in_sequence(
        self,
        context: TechniqueContext,
        small: CheckedModel,
        reports: Sequence[TechniqueReport],
        score: float | None = None,
    ) -> tuple[CheckedModel, tuple[str, ...]]:
        """`small`, which techniques made of the context's model, its layers solved again, and what is to be told.

        Outputs that come nearer are what layers are solved for, and not what the user wants: where `evaluate` says less
        of them than of `small` (`score`, where that is known), all layers are taken back.
        """
        judge = self.of_outputs(context)
        if context.dataset is None or judge is None or not any(report.changed for report in reports):
            return small, ()
        kept = {tensor: channels for report in reports for tensor, channels in report.kept.items()}
        each = partial(context.each, what="layers in sequence")
        model, told = solved_in_sequence(context.model, small, context.dataset, judge, kept, each)
        if self._evaluate is not None and model is not small:
            was = self._evaluated(small) if score is None else score
            now = self._evaluated(model)
            told += f"; evaluate from {was:.6g} to {now:.6g}"
            if now < was:
                return small, (f"{told}, so they are taken back",)
        return model, (told,) if told else ()

    def score(self, model: CheckedModel) -> float:
        """The higher the better."""
        if self._evaluate is not None:
            return self._evaluated(model)
        return 0.0 if self._judge is None else mean(self._judge.ratios(model))

    def _evaluated(self, model: CheckedModel) -> float:
        assert self._evaluate is not None
        self.count += 1
        figures = figures_of(self._evaluate, model)
        self._exact = figures if self._exact is None else self._exact
        score = score_of(figures, self._exact)
        if np.isnan(score):
            raise DataError(
                f"evaluate returned {without_number(figures)}: it must return a number, the higher the better"
            )
        return score


def network_cost(graph: Graph, table: Costs | None) -> Cost:
    """What all nodes cost together."""
    return Cost.sum(layer_costs(graph, table).values())


def observe_for(methods: Sequence[Compresses], context: TechniqueContext) -> None:
    """One pass over the data for all that these methods ask for, where there is data."""
    requests = [
        request for method in methods if isinstance(method, Observes) for request in method.requests(context).float
    ]
    once = {observed(FLOAT, request): request for request in requests}
    together = Requests(float=list(once.values()))
    if once and context.can_observe(together):
        context.observe(together)


def candidates_of(
    methods: Sequence[Compresses], context: TechniqueContext, wishes: Wishes, table: Costs | None
) -> list[list[Candidate]]:
    """What each method offers, from one pass over the data for all of them."""
    observe_for(methods, context)
    return [method.candidates(context, multiple=wishes.multiple, table=table) for method in methods]


class Stage:
    """Sizes are chosen so that the network costs `asked` in the unit of the wishes."""

    def __init__(
        self,
        methods: Sequence[Compresses],
        offered: Sequence[Sequence[Candidate]],
        context: TechniqueContext,
        wishes: Wishes,
        judging: Judging,
        table: Costs | None,
        asked: float,
    ) -> None:
        self.methods, self.context, self.wishes, self.judging = methods, context, wishes, judging
        self.table, self.asked, self.unit = table, asked, wishes.cost
        graph = context.graph
        listed = [candidate for each in offered for candidate in each]
        self.candidates = wishes.free(graph, listed)
        self.fixed, self.left = wishes.fixed(graph, listed)
        self.unknown = _unknown(graph, listed)
        self.unmet = dict(wishes.notes(graph, listed, self.fixed, self.left))
        self.before = network_cost(graph, table)
        self.rest = self.before - Cost.sum(pick.saved for pick in self.fixed.values())
        self.measured = self.candidates

    def done(self) -> Done:
        """The best choice, carried out."""
        self.judging.see(self.context)
        if self.wishes.select == "greedy" and self.judging.by == "evaluate":
            self.measured = [self._evaluated(candidate) for candidate in self.candidates]
        tried: list[tuple[Done, Trial]] = []
        seen: list[Mapping[str, Pick]] = []
        for select, emphasis, words in self._variants():
            selection = self._select(self.asked, select, emphasis)
            if any(_same(selection.picks, other) for other in seen):
                continue
            seen.append(selection.picks)
            done = self._near(selection, select, emphasis)
            tried.append((done, Trial(words, 0.0, done.cost.of(self.unit) / max(self.before.of(self.unit), 1e-300))))
            if not selection.reached:
                break
        if len(tried) > 1:
            tried = [(done, replace(trial, score=self.judging.score(done.model))) for done, trial in tried]
        best = max(range(len(tried)), key=lambda index: (tried[index][1].score, -index))
        done = tried[best][0]
        score = tried[best][1].score if len(tried) > 1 else None
        model, told = self.judging.in_sequence(self.context, done.model, done.reports, score)
        judged = [replace(t, chosen=i == best) for i, (_, t) in enumerate(tried)] if len(tried) > 1 else []
        changed = {layer.name for layer in done.layers}
        reasons = {each.name: each.why for each in self.candidates if each.name not in changed}
        dear = "any smaller size of it costs more accuracy than sizes of others that save as much"
        left = reasons | {each.name: dear for each in self.candidates if each.choices and each.name in reasons}
        return replace(
            done,
            model=model,
            left={**self.unknown, **left, **self.left},
            trials=tuple(judged),
            points=tuple(curve(self.candidates, self.rest, self.unit)),
            layer_curves=self._layer_curves(),
            notes=(*self._notes(done), *told),
        )

    def _variants(self) -> Iterator[tuple[str, float, str]]:
        first = next(each for each in _VARIANTS if each[0] == self.wishes.select)
        yield first
        if self.judging.by and self.wishes.select == "integer-program":
            yield from [each for each in _VARIANTS if each is not first][: self.wishes.trials - 1]

    def _select(self, asked: float, select: str, emphasis: float) -> Selection:
        keep = asked / max(self.rest.of(self.unit), 1e-300)
        return select_ratios(self.measured, self.rest, keep, self.unit, by=select, emphasis=emphasis)

    def _near(self, selection: Selection, select: str, emphasis: float) -> Done:
        """Carry out a selection; again for another budget where the network then costs other than was reckoned."""
        if len(self.methods) == 1 and isinstance(self.methods[0], CostsTogether):
            return self._carried_out(self._reckoned(self.methods[0], selection, select, emphasis))
        best = self._carried_out(selection)
        aim = self.asked
        for _ in range(_CORRECTIONS):
            cost = best.cost.of(self.unit)
            reckoned = selection.cost.of(self.unit)
            if abs(cost - self.asked) <= _NEAR * self.asked or abs(cost - reckoned) <= 1e-3 * reckoned:
                break  # near, or as near as sizes allow
            aim *= self.asked / max(cost, 1e-300)
            selection = self._select(aim, select, emphasis)
            done = self._carried_out(selection)
            if abs(done.cost.of(self.unit) - self.asked) >= abs(cost - self.asked):
                break
            best = done
        return best

    def _reckoned(self, method: CostsTogether, selection: Selection, select: str, emphasis: float) -> Selection:
        """The selection whose cost comes nearest to what was asked, where candidates share layers; nothing is run."""

        def miss(chosen: Selection) -> float:
            picks = {**self.fixed, **chosen.picks}
            choices = {name: pick.choice for name, pick in picks.items()}
            return method.cost_together(self.context.graph, choices, self.table).of(self.unit) - self.asked

        low, high, aim = -self.before.of(self.unit), self.rest.of(self.unit), self.asked
        best, least = selection, miss(selection)
        for _ in range(_RECKONINGS):
            if abs(least) <= _NEAR / 10 * self.asked or not high > low:
                break
            now = miss(selection)
            low, high = (aim, high) if now < 0 else (low, aim)
            aim = aim - now if low < aim - now < high else (low + high) / 2
            selection = self._select(aim, select, emphasis)
            found = miss(selection)
            # the nearest, one that costs no more than was asked rather than one that does
            if (found > _NEAR * self.asked, abs(found)) < (least > _NEAR * self.asked, abs(least)):
                best, least = selection, found
        return best

    def _carried_out(self, selection: Selection) -> Done:
        picks = {**self.fixed, **selection.picks}
        copy = self.context.model.copy()
        context = self.context.on(copy)
        steps, reports = [], []
        for method in self.methods:
            choices = {name: pick.choice for name, pick in picks.items() if pick.candidate.method == method.method}
            if choices:
                technique = method.chosen(choices)
                reports.append(technique.apply(context))
                steps.append(step_of(technique))
        layers = tuple(
            CompressedLayer(
                name,
                pick.candidate.method,
                pick.choice.words,
                pick.candidate.full.of(self.unit),
                pick.choice.cost.of(self.unit),
                pick.choice.error,
                pick.candidate.from_data,
            )
            for name, pick in sorted(picks.items(), key=lambda item: self._place(item[0]))
        )
        return Done(copy, network_cost(copy.graph, self.table), tuple(steps), tuple(reports), layers)

    def _place(self, name: str) -> int:
        return next((index for index, node in enumerate(self.context.graph.nodes) if node.name == name), 0)

    def _evaluated(self, candidate: Candidate) -> Candidate:
        """The candidate with what `evaluate` loses by each of ten sizes, all other layers whole."""
        count = len(candidate.choices)
        if not count:
            return candidate
        positions = np.unique(np.linspace(0, count - 1, min(count, _EVALUATED)).round().astype(np.int64))
        method = next(method for method in self.methods if method.method == candidate.method)
        before, errors, worst = self.judging.before or 0.0, {}, 0.0
        for position in map(int, positions):
            copy = self.context.model.copy()
            method.chosen({candidate.name: candidate.choices[position]}).apply(self.context.on(copy))
            drop = (before - self.judging.score(copy)) / max(abs(before), 1e-12)
            worst = max(worst, min(drop, 1.0))  # a smaller size is never held to be better
            errors[position] = worst
        return with_errors(candidate, errors)

    def _layer_curves(self) -> dict[str, tuple[tuple[float, float], ...]]:
        """Share of the cost and error of each choice, by layer and method."""
        return {
            f"{candidate.name} ({candidate.method})": tuple(
                (choice.cost.of(self.unit) / full, choice.error) for choice in candidate.choices
            )
            for candidate in self.candidates
            if candidate.choices and (full := candidate.full.of(self.unit)) > 0
        }

    def _notes(self, done: Done) -> Iterator[str]:
        yield from dict.fromkeys(note for report in done.reports for note in report.notes if "multiply-acc" not in note)
        yield from dict.fromkeys(note for candidate in self.candidates for note in candidate.notes)


def _unknown(graph: Graph, offered: Sequence[Candidate]) -> dict[str, str]:
    """Layers with weights that no method has looked at, and why they stay."""
    seen = {name for candidate in offered for name in (candidate.name, *candidate.layers)}
    return {
        node.name: f"{node.op}: these methods make no smaller one of it"
        for node in graph.nodes
        if node.op in WEIGHTED | RECURRENT and node.input(1) in graph.weights and node.name not in seen
    }


def step_of(technique: Any) -> Step:
    """The step of a recipe that applies this technique with its settings."""
    settings = {name: getattr(technique, name) for name in technique.__dataclass_fields__}
    return Step(type(technique), settings, keep=True)


def _same(one: Mapping[str, Pick], other: Mapping[str, Pick]) -> bool:
    return one.keys() == other.keys() and all(pick.choice is other[name].choice for name, pick in one.items())
