"""Channels that leave one by one, on moments of any rank and scale: against least squares solved anew at each step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from isobit.techniques.pruning import elimination
from isobit.techniques.pruning.elimination import Reader, eliminated

Floats = NDArray[np.float64]


def loss_without(rows: Floats, weight: Floats, stays: NDArray[np.bool_]) -> float:
    """The share of the output's power that no weights of the columns that stay make, from the rows themselves."""
    target = rows @ weight.T
    scale = np.sqrt(np.square(rows).sum(0))  # columns of one unit: lstsq cuts off by the largest
    unit = rows[:, stays] / np.where(scale > 0, scale, 1.0)[stays]
    left = target - unit @ np.linalg.lstsq(unit, target, rcond=1e-10)[0]
    return float(np.square(left).sum() / np.square(target).sum())


@st.composite
def inputs(draw: st.DrawFn) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Rows (fewer than columns or more), a weight and the channel of each column."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    channels, taps = draw(st.integers(2, 7)), draw(st.integers(1, 3))
    columns = channels * taps
    rows = rng.standard_normal((draw(st.integers(2, 30)), channels, taps))
    if draw(st.booleans()):
        rows[:, -1] = rows[:, 0]  # a duplicate
    if draw(st.booleans()):
        rows[:, channels // 2] = 0  # a dead one
    if draw(st.booleans()):
        rows *= 10.0 ** rng.integers(-8, 9, (channels, 1))
    flat = rows.reshape(len(rows), columns)
    weight = rng.standard_normal((2, columns)) / np.maximum(np.sqrt(np.square(flat).sum(0)), 1e-30)
    return flat, weight, np.repeat(np.arange(channels), taps)


@settings(max_examples=40, deadline=None)
@given(drawn=inputs())
def test_each_step_loses_what_least_squares_lose_and_no_other_loses_less(
    drawn: tuple[Floats, Floats, NDArray[np.int64]],
) -> None:
    rows, weight, channel = drawn
    target = rows @ weight.T
    if not np.square(target).sum() > 0:
        return
    reader = Reader(rows.T @ rows, weight, channel, float(np.square(target).sum()))
    count = int(channel[-1]) + 1
    order, errors = eliminated([reader], count)
    left = list(range(count))
    for gone, error in zip(order, errors, strict=True):
        losses = {c: loss_without(rows, weight, np.isin(channel, left) & (channel != c)) for c in left}
        assert error == pytest.approx(losses[gone], abs=1e-5)
        assert losses[gone] <= min(losses.values()) + 1e-5
        left.remove(gone)
    assert len(left) == 1


@settings(max_examples=8, deadline=None)
@given(rank=st.integers(1, 40), seed=st.integers(0, 1000))
@example(rank=3, seed=0)
def test_many_channels_of_few_rows_go_without_rounding_that_grows(rank: int, seed: int) -> None:
    """Several at once, with several renewals: the last errors are still those of least squares."""
    rng = np.random.default_rng(seed)
    rows = np.maximum(rng.standard_normal((rank, 90)), 0) * np.geomspace(1, 1e-6, 90)
    weight = rng.standard_normal((3, 90)) / np.geomspace(1, 1e-6, 90)
    power = float(np.square(rows @ weight.T).sum())
    if not power > 0:
        return
    order, errors = eliminated([Reader(rows.T @ rows, weight, np.arange(90), power)], 90)
    assert np.all(np.diff(errors) >= 0)
    for gone in (60, 80, 88):
        stays = ~np.isin(np.arange(90), order[: gone + 1])
        assert errors[gone] == pytest.approx(loss_without(rows, weight, stays), abs=1e-4)


def test_moments_that_rounding_made_indefinite_are_taken_as_they_were() -> None:
    """Squares of a mean far above the deviations leave eigenvalues below zero: those directions say nothing."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((50, 4)) @ rng.standard_normal((4, 12))
    moments = rows.T @ rows
    moments -= 1e-3 * np.eye(12)
    assert np.linalg.eigvalsh(moments)[0] < -1e-4
    weight = rng.standard_normal((2, 12))
    order, errors = eliminated([Reader(moments, weight, np.arange(12), float(np.square(rows @ weight.T).sum()))], 12)
    assert len(set(order)) == 11
    assert np.all(np.isfinite(errors))
    assert errors[7] < 1e-2  # there were four directions


def test_a_map_whose_inputs_are_all_gone_has_lost_everything() -> None:
    """One group of a convolution reads the first two channels alone."""
    rng = np.random.default_rng(1)
    readers = []
    for part in range(2):
        rows = rng.standard_normal((20, 2)) * (1 + 9 * part)
        readers.append(Reader(rows.T @ rows, np.ones((1, 2)), np.arange(2) + 2 * part, 1e4, "grouped"))
    order, errors = eliminated(readers, 4)
    assert order[:2] == [0, 1] or order[:2] == [1, 0]
    lost = sum(float((r.weight @ r.moments @ r.weight.T).item()) / r.power for r in readers[:1])
    assert errors[1] == pytest.approx(lost)


def test_a_block_that_is_singular_is_renewed_and_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever rounding does to the inverse, no error of NumPy comes out."""
    rng = np.random.default_rng(2)
    rows = rng.standard_normal((30, 8))
    reader = Reader(rows.T @ rows, rng.standard_normal((2, 8)), np.arange(8), 1e3)
    expected = eliminated([reader], 8)

    def never(blocks: Floats, right: Floats) -> Floats:
        raise np.linalg.LinAlgError("Matrix is not positive definite")

    monkeypatch.setattr(elimination, "whitened", never)
    found = eliminated([reader], 8)
    assert found[0] == expected[0]
    assert found[1] == pytest.approx(expected[1])
