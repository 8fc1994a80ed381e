"""Features of a layer's input: by their moments, by the rows of the input, and by brute force."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from isobit.statistics.layer_rows.patches import Patches
from isobit.statistics.layer_rows.rows import Rows
from isobit.techniques.low_rank import spans
from isobit.techniques.low_rank.factors import Factors, TuckerFactors, WidthFactors
from isobit.techniques.low_rank.input_moments import InputMoments, input_basis, on_outer
from isobit.techniques.low_rank.spans import RowSpan, Span

GROUPS, OUTPUTS, INPUTS, KERNEL = 2, 5, 6, (4, 3)
COLUMNS = INPUTS * 12


def rows(samples: int = 4) -> Rows:
    """Far fewer than columns, of inputs that hang together."""
    patches = Patches("Conv", (GROUPS * OUTPUTS, INPUTS, *KERNEL), GROUPS, (1, 1), (1, 1), (0,) * 4)
    found = Rows(patches)
    mixed = np.random.default_rng(2).normal(size=(samples, 3, 6, 5)).cumsum(axis=3)
    mixing = np.random.default_rng(3).normal(size=(GROUPS * INPUTS, 3))
    found.update(np.einsum("cr,nrhw->nchw", mixing, mixed).astype(np.float32) + 1)
    return found


def moments(samples: int = 4) -> InputMoments:
    found = InputMoments.of(rows(samples), COLUMNS)
    assert found.rows is not None
    assert len(found.rows) < COLUMNS
    return found


def weight() -> NDArray[np.float64]:
    return np.random.default_rng(0).normal(size=(GROUPS, OUTPUTS, INPUTS, *KERNEL))


def test_rows_explain_and_solve_what_moments_do() -> None:
    """For all ranks, those that were not asked for at first too, and for combinations of the outputs."""
    matrix, known = weight().reshape(GROUPS, OUTPUTS, -1), moments()
    basis = input_basis(matrix.reshape(GROUPS, -1, INPUTS), known.marginal(INPUTS), INPUTS)
    by_moments, by_rows = Span.of(matrix, basis, known), RowSpan.of(matrix, basis, known, [2, 5])
    mixing = np.random.default_rng(1).normal(size=(GROUPS, 3, OUTPUTS))
    for rank in (1, 2, 3, 5, 6):
        np.testing.assert_allclose(by_rows.explained(rank), by_moments.explained(rank), rtol=1e-6)
        made = [
            on_outer(span.solve(rank, mixing).reshape(GROUPS, -1, rank * 12), span.basis[:, :rank].swapaxes(1, 2))
            for span in (by_moments, by_rows)
        ]
        np.testing.assert_allclose(made[1], made[0], rtol=1e-5, atol=1e-7 * np.abs(made[0]).max())


def test_what_rows_explain_is_what_a_ridge_regression_does() -> None:
    """By an explicit least squares problem: the rows, and the damping as further rows."""
    matrix, known = weight().reshape(GROUPS, OUTPUTS, -1), moments()
    basis = input_basis(matrix.reshape(GROUPS, -1, INPUTS), known.marginal(INPUTS), 3)
    span = RowSpan.of(matrix, basis, known, [3])
    assert known.rows is not None
    assert known.floor is not None
    missing = np.zeros(OUTPUTS)
    for group in range(GROUPS):
        damped = np.sqrt(known.floor[group]) * np.eye(COLUMNS)
        x = np.concatenate([known.rows[:, group] / np.sqrt(len(known.rows)), damped])
        features = on_outer(x[None], span.basis[[group]])[0]
        target = x @ matrix[group].T
        missing += np.square(target - features @ np.linalg.lstsq(features, target, rcond=None)[0]).sum(axis=0)
    np.testing.assert_allclose(known.powers(matrix) - span.explained(3), missing, rtol=1e-6)


@pytest.mark.parametrize(("kind", "ranks"), [(TuckerFactors, (3, 4)), (WidthFactors, (7,))])
def test_layers_of_many_features_are_split_by_rows(monkeypatch: pytest.MonkeyPatch, kind, ranks) -> None:
    """The same factors, and the error that is told is that of the weight which they make."""
    known, made = moments(), []
    for most in (spans.MOST_MOMENTS, 1):
        monkeypatch.setattr(spans, "MOST_MOMENTS", most)
        factors: Factors = kind(weight(), known, ranks[:1])
        made.append(factors.product(ranks))
        missing = known.power(weight().reshape(GROUPS, OUTPUTS, -1) - made[-1])
        assert factors.error(ranks) == pytest.approx(missing, rel=1e-6)
    np.testing.assert_allclose(made[1], made[0], atol=1e-6 * np.abs(made[0]).max())


def test_singular_moments_are_solved_by_least_norm() -> None:
    """Features twice the same: any share of the two is right, and the solver says nothing of them."""
    second = np.ones((1, 2, 2))
    span = Span(np.ones((1, 2, 1)), second, np.full((1, 1, 2), 3.0), np.zeros((2, 1)))
    np.testing.assert_allclose(span.solve(2, np.ones((1, 1, 1))), [[[1.5, 1.5]]])
