"""Sizes under a budget: against every combination there is."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isobit.budget import Candidate, Choice, Cost
from isobit.budget.pareto import pareto
from isobit.budget.select_ratios import curve, loss, select_ratios
from isobit.errors import FormatError


def candidate(name: str, full: float, sizes: list[tuple[float, float]], method: str = "m") -> Candidate:
    choices = [
        Choice(i, {"i": i}, Cost(macs=macs, parameters=macs), error, "") for i, (macs, error) in enumerate(sizes)
    ]
    return Candidate(name, method, (name,), Cost(macs=full, parameters=full), tuple(choices))


def networks(seed: int) -> list[Candidate]:
    rng = np.random.default_rng(seed)
    found = []
    for index in range(4):
        full = float(rng.integers(20, 100))
        shares = np.sort(rng.uniform(0.1, 0.9, 4))[::-1]
        errors = np.sort(rng.uniform(0, 0.6, 4))
        found.append(candidate(f"l{index}", full, [(full * s, e) for s, e in zip(shares, errors, strict=True)]))
    return found


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), keep=st.floats(0.3, 0.95))
def test_no_combination_loses_less(seed: int, keep: float) -> None:
    found = networks(seed)
    fixed = 17.0
    total = Cost.sum(c.full for c in found) + Cost(macs=fixed)
    best = np.inf
    for picks in product(*[[None, *c.choices] for c in found]):
        macs = fixed + sum(
            c.full.macs if pick is None else pick.cost.macs for c, pick in zip(found, picks, strict=True)
        )
        if macs <= keep * total.macs:
            best = min(best, sum(loss(pick.error) for pick in picks if pick is not None))
    selection = select_ratios(found, total, keep)
    if np.isinf(best):
        assert not selection.reached
        assert {p.choice.size for p in selection.picks.values()} == {3}
        return
    assert selection.reached
    assert selection.cost.macs <= keep * total.macs * (1 + 1e-9)
    # savings are counted in 20000 steps: a combination may be missed that fits by less
    slack = select_ratios(found, total, keep - 1e-3)
    assert best - 1e-9 <= selection.loss <= max(best, slack.loss) + 1e-9


def test_where_data_shows_no_loss_no_more_is_taken_off_than_was_asked() -> None:
    """Flat curves: all sizes of a layer down to a quarter are without error."""
    flat = [(100 - 5 * step, 0.0) for step in range(1, 16)]
    found = [candidate(name, 100, flat) for name in "abc"]
    for by in ("integer-program", "greedy"):
        for keep in (0.9, 0.5, 0.3):
            selection = select_ratios(found, Cost(macs=300), keep, by=by)
            assert keep * 300 - 5 < selection.cost.macs <= keep * 300 * (1 + 1e-9)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), keep=st.floats(0.3, 0.95), by=st.sampled_from(["integer-program", "greedy"]))
def test_what_is_left_of_the_budget_is_spent(data: st.DataObject, keep: float, by: str) -> None:
    """Made-up curves with flat parts: no layer has a larger size that fits and loses no more."""
    found = []
    for index in range(data.draw(st.integers(1, 4))):
        full = data.draw(st.integers(20, 100))
        sizes = sorted(data.draw(st.sets(st.integers(1, full - 1), min_size=1, max_size=6)), reverse=True)
        errors = sorted(data.draw(st.sampled_from([0.0, 1e-12, 0.1, 0.3])) for _ in sizes)
        found.append(candidate(f"l{index}", full, list(zip(sizes, errors, strict=True))))
    total = Cost.sum(c.full for c in found)
    selection = select_ratios(found, total, keep, by=by)
    if not selection.reached:
        return
    spare = keep * total.macs - selection.cost.macs
    for each in found:
        pick = selection.picks.get(each.name)
        if pick is not None:
            larger = [c.cost.macs for c in each.choices if c.error <= pick.choice.error] + [each.full.macs]
            assert all(cost <= pick.choice.cost.macs or cost - pick.choice.cost.macs > spare - 1e-9 for cost in larger)


def test_of_choices_with_equal_errors_each_cost_is_offered() -> None:
    listed = [
        Choice(i, {}, Cost(macs=m, parameters=m), e, "") for i, (m, e) in enumerate([(9, 0.0), (7, 0.0), (5, 0.2)])
    ]
    worse = [Choice(3, {}, Cost(macs=7, parameters=7), 0.0, ""), Choice(4, {}, Cost(macs=6, parameters=6), 0.3, "")]
    assert [choice.size for choice in pareto([*listed, *worse])] == [0, 1, 2]


def test_the_greedy_choice_bounds_every_layer_by_one_error() -> None:
    found = [
        candidate("a", 100, [(80, 0.01), (60, 0.05), (40, 0.2)]),
        candidate("b", 100, [(80, 0.02), (60, 0.1), (40, 0.4)]),
    ]
    selection = select_ratios(found, Cost(macs=200), 0.7, by="greedy")
    assert {name: pick.choice.error for name, pick in selection.picks.items()} == {"a": 0.05, "b": 0.02}


def test_a_layer_that_two_methods_offer_takes_the_better_one() -> None:
    found = [candidate("a", 100, [(50, 0.2)], "first"), candidate("a", 100, [(52, 0.01), (49, 0.1)], "second")]
    selection = select_ratios(found, Cost(macs=100), 0.5)
    assert [(p.candidate.method, p.choice.error) for p in selection.picks.values()] == [("second", 0.1)]


def test_nothing_is_chosen_where_all_is_kept_and_all_where_no_choice_reaches() -> None:
    found = [candidate("a", 100, [(50, 0.2)])]
    assert not select_ratios(found, Cost(macs=100), 1.0).picks
    selection = select_ratios(found, Cost(macs=100), 0.1)
    assert not selection.reached
    assert selection.cost.macs == 50
    assert not select_ratios([], Cost(macs=100), 0.5).reached


def test_the_curve_is_that_of_the_selections() -> None:
    found = networks(3)
    total = Cost.sum(c.full for c in found)
    points = curve(found, total)
    assert points[0].keep == 1.0
    assert points[0].loss == 0.0
    assert [p.loss for p in points] == sorted(p.loss for p in points)
    for point in points[1:]:
        assert select_ratios(found, total, point.keep).loss == pytest.approx(point.loss, abs=1e-9)


def test_an_unknown_selection_is_refused() -> None:
    with pytest.raises(FormatError, match="no selection is called 'gredy' .did you mean 'greedy'"):
        select_ratios([], Cost(macs=1), 0.5, by="gredy")
