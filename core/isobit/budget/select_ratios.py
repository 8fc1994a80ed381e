"""`select_ratios`: how small to make each layer so that the network fits into a budget and loses the least.

The integer program chooses one size a candidate: the least sum of losses whose savings reach what is asked. It is a
multiple-choice knapsack, which dynamic programming over the savings solves for every budget at once. The loss of a
choice is ``-log(1 - error)``: errors of layers behind each other keep the product of what each keeps.

Sources: Zhang et al., IEEE TPAMI 2016, section 3.3 (the product of the power kept); Kellerer, Pferschy and Pisinger,
"Knapsack Problems", 2004, chapter 11; AIMET's greedy selection, which bounds the worst layer by one threshold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from isobit.budget.candidate import Candidate, Choice
from isobit.budget.cost import Cost
from isobit.errors import FormatError, did_you_mean

#: How the sizes are chosen.
SELECTIONS = ("integer-program", "greedy")

#: Steps that savings are counted in, and choices of a candidate that are looked at.
_STEPS = 20000
_MOST_CHOICES = 256

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Pick:
    """A candidate, and what is done to it."""

    candidate: Candidate
    choice: Choice

    @property
    def saved(self) -> Cost:
        """What it takes off the network's cost."""
        return self.candidate.full - self.choice.cost

    def saving(self, unit: str) -> float:
        """The same in one unit."""
        return self.candidate.full.of(unit) - self.choice.cost.of(unit)


@dataclass(frozen=True, eq=False)
class Selection:
    """The chosen sizes, by candidate's name; candidates that stay whole are not in it.

    `loss` is the sum that was made small. `cost` is what the network costs then, by the candidates' figures; `reached`
    says whether it is within the budget: else no choices save more.
    """

    picks: Mapping[str, Pick]
    cost: Cost
    loss: float
    reached: bool


@dataclass(frozen=True)
class CurvePoint:
    """The least loss of a network that keeps this share of its cost, and the share of power kept, ``exp(-loss)``."""

    keep: float
    loss: float
    kept_power: float


def loss(error: float) -> float:
    """The loss of a choice: none for an exact one, infinite where nothing is kept."""
    return float(-np.log1p(-min(max(error, 0.0), 1 - 1e-9)))


def select_ratios(
    candidates: Sequence[Candidate],
    total: Cost,
    keep: float,
    unit: str = "macs",
    *,
    by: str = "integer-program",
    emphasis: float = 1.0,
) -> Selection:
    """Choices with which the network keeps at most `keep` of its `total` cost in `unit`, and as much of it as may be.

    `by` is ``"integer-program"`` or ``"greedy"``: the smallest size of every candidate whose error is below one bound.
    `emphasis` is the power that losses are raised to: above 1 single large losses count for more. Candidates of one
    name exclude each other, as methods for one layer do. Raises FormatError.
    """
    if by not in SELECTIONS:
        raise FormatError(
            f"no selection is called {by!r}{did_you_mean(by, SELECTIONS)}; known: {', '.join(SELECTIONS)}"
        )
    whole = total.of(unit)
    need = whole - keep * whole
    pools = _pools(candidates, unit)
    most = sum(pool[-1].saving(unit) for pool in pools)
    if need <= 0 or not pools:
        return Selection({}, total, 0.0, need <= 0)
    if most < need * (1 - 1e-9):
        chosen: list[Pick | None] = [pool[-1] for pool in pools]
        return _selection(chosen, total, reached=False)
    losses = [[loss(pick.choice.error) ** emphasis for pick in pool] for pool in pools]
    chosen = _bounded(pools, losses, need, unit) if by == "greedy" else _program(pools, losses, need, most, unit)
    return _selection(_filled(pools, losses, chosen, need, unit), total, reached=True)


def curve(candidates: Sequence[Candidate], total: Cost, unit: str = "macs", points: int = 20) -> list[CurvePoint]:
    """The least loss at evenly spaced shares of the cost, as far as choices reach, the dearest first."""
    pools = _pools(candidates, unit)
    whole, most = total.of(unit), sum(pool[-1].saving(unit) for pool in pools)
    if not pools or not whole > 0 or not most > 0:
        return [CurvePoint(1.0, 0.0, 1.0)]
    losses = [[loss(pick.choice.error) for pick in pool] for pool in pools]
    best, _ = _table(pools, losses, most, unit)
    found = []
    for index in range(points):
        keep = 1 - index / points
        step = int(np.ceil((whole - keep * whole) / most * _STEPS - 1e-9))
        if step <= _STEPS and np.isfinite(best[step]):
            found.append(CurvePoint(round(keep, 6), float(best[step]), float(np.exp(-best[step]))))
    return found


def _pools(candidates: Sequence[Candidate], unit: str) -> list[list[Pick]]:
    """What can be done in the place of one name: from what saves least to what saves most, none for a smaller error.

    Sizes of equal errors are all there: where data shows no loss, no more is taken off than was asked.
    """
    by_name: dict[str, list[Pick]] = {}
    for candidate in candidates:
        for choice in candidate.choices:
            by_name.setdefault(candidate.name, []).append(Pick(candidate, choice))
    pools = []
    for picks in by_name.values():
        kept: list[Pick] = []
        for pick in sorted(picks, key=lambda each: (-each.saving(unit), each.choice.error)):
            last = kept[-1] if kept else None
            beaten = last is not None and (
                pick.choice.error > last.choice.error
                or (pick.choice.error == last.choice.error and pick.saving(unit) == last.saving(unit))
            )
            if not beaten and pick.saving(unit) > 0:
                kept.append(pick)
        if kept:
            kept.reverse()
            chosen = np.unique(np.linspace(0, len(kept) - 1, min(len(kept), _MOST_CHOICES)).round().astype(np.int64))
            pools.append([kept[int(index)] for index in chosen])
    return pools


def _table(
    pools: Sequence[Sequence[Pick]], losses: Sequence[Sequence[float]], most: float, unit: str
) -> tuple[Floats, list[NDArray[np.int16]]]:
    """The least loss for each step of savings, and which choice of each pool it takes (-1: it stays whole)."""
    best = np.full(_STEPS + 1, np.inf)
    best[0] = 0.0
    taken = []
    for pool, lost in zip(pools, losses, strict=True):
        now, which = best.copy(), np.full(_STEPS + 1, -1, np.int16)
        for index, (pick, cost) in enumerate(zip(pool, lost, strict=True)):
            # rounded down, so that the savings of a solution are real ones
            step = int(pick.saving(unit) / most * _STEPS + 1e-6)
            reached = np.empty_like(best)
            reached[:step] = best[0] + cost
            reached[step:] = best[: _STEPS + 1 - step] + cost
            better = reached < now
            now[better], which[better] = reached[better], index
        best = now
        taken.append(which)
    return best, taken


def _program(
    pools: Sequence[Sequence[Pick]], losses: Sequence[Sequence[float]], need: float, most: float, unit: str
) -> list[Pick | None]:
    best, taken = _table(pools, losses, most, unit)
    step = min(int(np.ceil(need / most * _STEPS - 1e-9)), _STEPS)
    if not np.isfinite(best[step]):  # by rounding alone: it takes nearly all that there is to save
        return [pool[-1] for pool in pools]
    chosen: list[Pick | None] = []
    for pool, which in zip(reversed(pools), reversed(taken), strict=True):
        index = int(which[step])
        chosen.append(None if index < 0 else pool[index])
        if index >= 0:
            step = max(0, step - int(pool[index].saving(unit) / most * _STEPS + 1e-6))
    return chosen[::-1]


def _bounded(
    pools: Sequence[Sequence[Pick]], losses: Sequence[Sequence[float]], need: float, unit: str
) -> list[Pick | None]:
    """The smallest sizes whose loss is below one bound, for the least bound that saves enough."""

    def within(bound: float) -> list[Pick | None]:
        return [
            next((pick for pick, lost in zip(reversed(pool), reversed(each), strict=True) if lost <= bound), None)
            for pool, each in zip(pools, losses, strict=True)
        ]

    bounds = sorted({lost for each in losses for lost in each})
    low, high = 0, len(bounds) - 1
    while low < high:
        middle = (low + high) // 2
        if _saved(within(bounds[middle]), unit) >= need:
            high = middle
        else:
            low = middle + 1
    return within(bounds[low])


def _filled(
    pools: Sequence[Sequence[Pick]],
    losses: Sequence[Sequence[float]],
    chosen: Sequence[Pick | None],
    need: float,
    unit: str,
) -> list[Pick | None]:
    """The same with larger sizes where more is saved than is asked: first where that gains most."""
    filled, spare = list(chosen), _saved(chosen, unit) - need
    while True:
        gains = []
        for index, (pool, lost) in enumerate(zip(pools, losses, strict=True)):
            now = filled[index]
            if now is None:
                continue
            at = next(position for position, pick in enumerate(pool) if pick is now)
            for position, pick in enumerate([None, *pool[:at]]):
                saved = 0.0 if pick is None else pick.saving(unit)
                if now.saving(unit) - saved <= spare:
                    gains.append((lost[at] - (0.0 if pick is None else lost[position - 1]), index, pick, saved))
                    break  # the largest size that fits gains most
        if not gains:
            return filled
        _, index, pick, saved = max(gains, key=lambda gain: gain[:2])
        before = filled[index]
        spare -= (0.0 if before is None else before.saving(unit)) - saved
        filled[index] = pick


def _saved(chosen: Sequence[Pick | None], unit: str) -> float:
    return sum(pick.saving(unit) for pick in chosen if pick is not None)


def _selection(chosen: Sequence[Pick | None], total: Cost, *, reached: bool) -> Selection:
    picks = {pick.candidate.name: pick for pick in chosen if pick is not None}
    cost = total - Cost.sum(pick.saved for pick in picks.values())
    return Selection(picks, cost, sum(loss(pick.choice.error) for pick in picks.values()), reached)


def with_errors(candidate: Candidate, errors: Mapping[int, float]) -> Candidate:
    """A candidate whose choices of these positions alone are left, with errors that were measured some other way."""
    return replace(
        candidate, choices=tuple(replace(candidate.choices[at], error=error) for at, error in sorted(errors.items()))
    )
