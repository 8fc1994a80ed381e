"""The search: the curve of least cost for each noise, and along it the point that meets the goal."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from isobit.data import Batch
from isobit.deadline import check_time
from isobit.errors import DataError, ModelError
from isobit.placement.coverage import Coverage
from isobit.quantsim.other_formats import with_overrides
from isobit.quantsim.quantsim import QuantSim
from isobit.quantsim.simulation import Simulation
from isobit.search.cost_tables import CostTable, cost_table
from isobit.search.explain import explained
from isobit.search.formats import Candidate, parse_candidates
from isobit.search.groups import Groups
from isobit.search.integer_program import Program
from isobit.search.mixed_result import MixedPrecision, Point
from isobit.search.noise.sensitivity import noise_by_group
from isobit.search.operations import costs_of
from isobit.search.scoring import Score, Scorer, agreement, digest_key

#: Points of the curve between its ends, by noise and by cost, and models that are measured at a time.
_POINTS, _AT_A_TIME = 8, 3

#: Further points where the curve has the largest gaps, and the gap in decibels below which none is worth one.
_FURTHER, _CLOSE = 24, 0.25

#: What is cheaper by less than this part costs the same: above the tolerance of the solver.
_LESS = 1e-5

#: Noise below this part of the largest is no aim: nothing is gained that could be measured.
_LEAST_NOISE = 1e-6

Choice = tuple[int, ...]


@dataclass(frozen=True)
class Goal:
    """A budget in the unit of the costs, or a drop of the score, and how many models may be run for it."""

    budget: float | None
    max_drop: float
    evaluations: int
    is_over: Callable[[], bool] = lambda: False

    def text(self, unit: str) -> str:
        """In words."""
        return f"drop at most {self.max_drop:g}" if self.budget is None else f"at most {self.budget:.6g} {unit}"


def choose(
    simulation: Simulation,
    batches: Sequence[Batch],
    scorer: Scorer,
    goal: Goal,
    candidates: Iterable[str] | None = None,
    cost: str | Mapping[str, float] = "bits",
    key: str = "mixed",
) -> MixedPrecision:
    """Find the formats. `key` says to the scorer what simulator this is."""
    formats = parse_candidates(simulation, candidates)
    table = cost_table(cost, simulation.target, formats)
    search = Search(simulation, batches, scorer, formats, table, key)
    started = scorer.count
    chosen = search.within_budget(goal) if goal.budget is not None else search.within_drop(goal)
    curve = {choice: search.point(choice) for choice in search.choices()}
    point = curve[chosen]
    sim = QuantSim.of_simulation(search.variant(chosen))
    had = simulation.config.overrides or {}
    overrides = {name: form for name, form in (sim.simulation.config.overrides or {}).items() if name not in had}
    holds = goal.budget is not None or point.holds(goal.max_drop)
    return MixedPrecision(
        sim,
        tuple(curve.values()),
        point,
        explained(search.groups, search.program, formats, search.current, chosen),
        search.program.costs.unit,
        goal.text(table.unit),
        holds,
        _why(point, goal, holds, search, scorer),
        scorer.float_score.value,
        scorer.count - started,
        {name: None if form is None else str(form) for name, form in overrides.items()},
        search.runs(chosen),
        tuple(search.notes(sim, chosen)),
    )


class Search:
    """Choices of formats, as points of a curve, and what was measured of them."""

    def __init__(
        self,
        simulation: Simulation,
        batches: Sequence[Batch],
        scorer: Scorer,
        formats: Sequence[Candidate],
        table: CostTable,
        key: str,
    ) -> None:
        self.simulation, self.scorer, self.formats, self._key = simulation, scorer, formats, key
        default = simulation.target.activation_format(simulation.config.activations)
        self.least = default.bits
        self.groups = Groups(simulation)
        if not self.groups.all:
            raise ModelError("nothing is quantized in this simulator, so there are no formats to choose")
        self.current = _current(self.groups, formats)
        noise = noise_by_group(simulation, self.groups, formats, self.current, self.least, batches)
        self.passes = noise.passes
        self.program = Program(costs_of(self.groups, formats, table), noise.single, noise.crossed)
        self._measured: dict[Choice, Score] = {}
        self._choices: dict[Choice, None] = {}

    def choices(self) -> list[Choice]:
        """What is on the curve, the cheapest first, without what costs more for more noise and was not measured."""
        program, kept = self.program, list[Choice]()
        least = math.inf
        for choice in sorted(self._choices, key=lambda c: (program.costs.of(c), program.noise_of(c))):
            noise = program.noise_of(choice)
            if noise < least or choice in self._measured:
                kept.append(choice)
            least = min(least, noise)
        return kept

    def within_budget(self, goal: Goal) -> Choice:
        """The least noise that is predicted for this cost."""
        budget = goal.budget or 0.0
        cheapest = self.program.cheapest()
        if self.program.costs.of(cheapest) > budget * (1 + 1e-9):
            raise DataError(
                f"a budget of {budget:.6g} {self.program.costs.unit} cannot be met: the cheapest formats cost "
                f"{self.program.costs.of(cheapest):.6g}"
            )
        self.draw_curve()
        chosen = self.program.quietest(budget)
        self._choices[chosen] = None
        self._measure([chosen])
        return chosen

    def within_drop(self, goal: Goal) -> Choice:
        """The cheapest that was measured to hold the drop; where none does, the best."""
        self.draw_curve()
        self._measure(self.choices()[:1])
        if not self._holding(goal):
            self._measure(self._first_guesses(goal)[: goal.evaluations - 1])
        while not goal.is_over() and (left := goal.evaluations - len(self._measured)) > 0:
            between = self._between(goal)
            if left == 1 and not self._holding(goal):
                between = [choice for choice in self.choices()[-1:] if choice not in self._measured]
            if not between:
                break
            self._measure(between[: min(left, _AT_A_TIME)])
        holding = self._holding(goal)
        if holding:
            return min(holding, key=lambda choice: (self.program.costs.of(choice), self.program.noise_of(choice)))
        return max(self._measured, key=lambda choice: (self._measured[choice].value, -self.program.costs.of(choice)))

    def point(self, choice: Choice) -> Point:
        """A choice as a point of the curve."""
        noise, program = self.program.noise_of(choice), self.program
        names = {group.name: self.formats[index].name for group, index in zip(self.groups.all, choice, strict=True)}
        point = Point(names, program.costs.of(choice), -10 * math.log10(noise) if noise > 0 else math.inf)
        score = self._measured.get(choice)
        if score is None:
            return point
        drop, margin = score.drop_from(self.scorer.float_score)
        return replace(point, sqnr=score.sqnr, score=score.value, drop=drop, margin=margin, figures=score.figures)

    def runs(self, choice: Choice) -> int:
        """How often it was evaluated."""
        return self._measured[choice].runs

    def overrides(self, choice: Choice) -> dict[str, str | None]:
        """The settings that make it."""
        return self.groups.overrides({i: self.formats[f] for i, f in enumerate(choice)}, self.least)

    def variant(self, choice: Choice) -> Simulation:
        """The simulator with these formats."""
        return with_overrides(self.simulation, self.overrides(choice))

    def notes(self, sim: QuantSim, choice: Choice) -> list[str]:
        """How much runs in integers, and what the plan made of the choice otherwise."""
        odd = [str(Coverage.of(sim.graph, sim.plan))]
        for group, index in zip(self.groups.all, choice, strict=True):
            for placement in group.placements:
                wanted = self.formats[index].spec(placement, self.least)
                if placement.site in group.frozen or group.kept:
                    continue
                there = [p for p in sim.plan.placements.values() if p.tensor == placement.tensor and placement.tensor]
                found = sim.plan.placements.get(placement.site) or (there[0] if there else None)
                if (found.spec if found is not None else None) != wanted:
                    odd.append(f"{placement.site}: {found.spec if found is not None else 'float'}, not {wanted}")
        return odd

    # --- inside ----------------------------------------------------------------------------------------------------

    def draw_curve(self) -> None:
        """The ends, points at equal distances in decibels and in the logarithm of the cost, and some in the gaps.

        Programs of large models take seconds each: the deadline is asked before each of them.
        """
        program = self.program
        cheapest, quietest = program.cheapest(), program.quietest()
        self._choices.update(dict.fromkeys((cheapest, quietest)))
        most = program.noise_of(cheapest)
        least = max(program.noise_of(quietest), most * _LEAST_NOISE)
        if most > least > 0:
            for noise in np.geomspace(most, least, _POINTS + 2)[1:-1]:
                check_time()
                self._choices[program.within(float(noise))] = None
        low, high = program.costs.of(cheapest), program.costs.of(quietest)
        if high > low > 0:
            for budget in np.geomspace(low, high, _POINTS + 2)[1:-1]:
                check_time()
                self._choices[program.quietest(float(budget))] = None
        self._fill_gaps(least)

    def _fill_gaps(self, least: float) -> None:
        """Points in the largest gaps: much may be gained there for next to nothing, or nothing at all.

        First the cheapest in the middle of a gap. Where that is its end, the quietest of what is cheaper than its end
        tells whether there is anything.
        """
        program = self.program
        ends: set[tuple[Choice, Choice]] = set()  # gaps in whose middle nothing is cheaper than their end
        empty: set[tuple[Choice, Choice]] = set()
        for _ in range(_FURTHER):
            check_time()
            curve = [choice for choice in self.choices() if program.noise_of(choice) > 0]
            noises = {choice: max(program.noise_of(choice), least) for choice in curve}
            gaps = [pair for pair in pairwise(curve) if pair not in empty]
            widest = max(gaps, key=lambda pair: noises[pair[0]] / noises[pair[1]], default=None)
            if widest is None or 10 * math.log10(noises[widest[0]] / noises[widest[1]]) < _CLOSE:
                return
            first, end = widest
            if widest not in ends:
                found = program.within(math.sqrt(noises[first] * noises[end]))
                ends.update([widest] if found in self._choices else [])
            else:
                less = max(program.costs.of(first), program.costs.of(end) * (1 - _LESS))
                found = program.quietest(less)
                empty.update([(found, end), widest])
            self._choices[found] = None

    def _first_guesses(self, goal: Goal) -> list[Choice]:
        """Where the prediction says that it holds, and the points beside it; with `evaluate`, a few along the curve."""
        curve = self.choices()
        if self.scorer.evaluate is None:
            scores = [agreement(self.point(choice).predicted) for choice in curve]
            first = next((i for i, score in enumerate(scores) if 1 - score <= goal.max_drop), len(curve) - 1)
            return curve[max(1, first - 1) : first + 2]
        return _spread(curve[1:], _AT_A_TIME)

    def _between(self, goal: Goal) -> list[Choice]:
        """What to measure next: points between the last that fails and the first that holds, new ones where none is."""
        curve = self.choices()
        measured = [choice for choice in curve if choice in self._measured]
        holding = [choice for choice in measured if self._holds(choice, goal)]
        end = curve.index(holding[0]) if holding else len(curve)
        failing = [curve.index(choice) for choice in measured if curve.index(choice) < end]
        start = failing[-1] if failing else -1
        inner = [choice for choice in curve[start + 1 : end] if choice not in self._measured]
        if inner or not holding or start < 0:
            return _spread(inner, _AT_A_TIME)
        most, least = (self.program.noise_of(curve[i]) for i in (start, end))
        if not most > least > 0:
            return []
        new = [self.program.within(float(noise)) for noise in np.geomspace(most, least, _AT_A_TIME + 2)[1:-1]]
        fresh = [choice for choice in dict.fromkeys(new) if choice not in self._choices]
        fresh = [c for c in fresh if self.program.costs.of(c) < self.program.costs.of(curve[end])]
        self._choices.update(dict.fromkeys(fresh))
        return fresh

    def _holding(self, goal: Goal) -> list[Choice]:
        return [choice for choice in self._measured if self._holds(choice, goal)]

    def _holds(self, choice: Choice, goal: Goal) -> bool:
        return self.point(choice).holds(goal.max_drop)

    def _measure(self, choices: Sequence[Choice]) -> None:
        new = [choice for choice in choices if choice not in self._measured]
        items = [
            (f"{self._key}:{digest_key(self.overrides(choice))}", lambda choice=choice: self.variant(choice).model)
            for choice in new
        ]
        self._measured.update(zip(new, self.scorer.scores(items), strict=True))


def _current(groups: Groups, formats: Sequence[Candidate]) -> Candidate:
    """The candidate that the simulator has: that of the bits which most of its activations and weights have."""
    bits = {True: [32], False: [32]}
    for group in groups.all:
        for placement in group.placements:
            bits[placement.kind == "weight"].append(placement.spec.bits)
    activations, weights = (max(sorted(set(bits[kind])), key=bits[kind].count) for kind in (False, True))
    return min(formats, key=lambda c: abs(c.activation_bits - activations) + abs(c.weight_bits - weights))


def _spread(choices: Sequence[Choice], count: int) -> list[Choice]:
    """A few of them at equal distances."""
    if len(choices) <= count:
        return list(choices)
    places = np.linspace(0, len(choices) + 1, count + 2)[1:-1]
    return [choices[round(place) - 1] for place in places]


def _why(point: Point, goal: Goal, holds: bool, search: Search, scorer: Scorer) -> str:
    cost = f"{point.cost:.4g} {search.program.costs.unit}"
    score = f"{scorer.what} {point.score:.6g}, {scorer.float_score.value:.6g} in float; {point.sqnr:.1f} dB"
    if goal.budget is not None:
        return f"the least noise that is predicted for {goal.text(search.program.costs.unit)}: {cost}; {score}"
    if holds:
        return (
            f"the cheapest of {len(search._measured)} measured that holds a drop of {goal.max_drop:g}: {cost}; {score}"
        )
    return (
        f"none of {len(search._measured)} measured holds a drop of {goal.max_drop:g}; this is the best: {cost}; {score}"
    )
