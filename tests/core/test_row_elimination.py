"""Channels that leave by rows: the same order, errors and weights as by moments, which are those of brute force."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from technique_networks import opened

from isobit.data import Dataset
from isobit.techniques import PruneChannels
from isobit.techniques.context import TechniqueContext
from isobit.techniques.pruning import row_elimination, solved_weights
from isobit.techniques.pruning.elimination import Floats, Reader, eliminated
from isobit.techniques.pruning.row_elimination import RowReader
from isobit.testing.networks import Network, NetworkBuilder

#: 12 channels of three columns, one that is read twice, and four columns that stay.
CHANNELS = np.array([*np.repeat(np.arange(12), 3), 3, 3, 3, -1, -1, -1, -1])


def both(rows: int = 20, floor: float = 0.05, channels: NDArray[np.int64] = CHANNELS) -> tuple[Reader, RowReader]:
    rng = np.random.default_rng(4)
    values = (rng.normal(size=(rows, 5)) @ rng.normal(size=(5, len(channels)))).astype(np.float32)
    values += 0.3 * rng.normal(size=values.shape).astype(np.float32)
    weight = rng.normal(size=(6, len(channels)))
    second = values.T.astype(np.float64) @ values / rows + floor * np.eye(len(channels))
    power = float(np.vdot(weight @ second, weight))
    return Reader(second, weight, channels, power, "a"), RowReader(values, floor, weight, channels, power, "a")


@pytest.mark.parametrize("rows", [2, 20, 60])
def test_channels_leave_as_by_moments(rows: int) -> None:
    """Fewer rows than columns of a channel, fewer than columns, and more."""
    by_moments, by_rows = both(rows)
    (order, errors), (other, errors_by_rows) = eliminated([by_moments], 12), eliminated([by_rows], 12)
    assert other == order
    np.testing.assert_allclose(errors_by_rows, errors, rtol=1e-5)


def test_many_channels_leave_at_once_and_by_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_elimination, "_BLOCK", 100)
    by_moments, by_rows = both(channels=np.repeat(np.arange(100), 2))
    (order, errors), (other, errors_by_rows) = eliminated([by_moments], 100), eliminated([by_rows], 100)
    assert other == order
    np.testing.assert_allclose(errors_by_rows, errors, rtol=1e-5)


def test_the_weights_that_are_left_are_those_of_least_squares() -> None:
    by_moments, by_rows = both()
    gone = np.flatnonzero(np.isin(CHANNELS, [0, 3, 7]))
    (weight, error), (other, error_by_rows) = by_moments.without(gone), by_rows.without(gone)
    np.testing.assert_allclose(other, weight, atol=1e-6)
    missing = by_rows.weight - other
    assert error_by_rows == pytest.approx(float(np.vdot(missing @ by_moments.moments, missing)), rel=1e-6)
    assert error_by_rows == pytest.approx(error, rel=1e-6)


def test_rows_that_say_nothing_cost_nothing() -> None:
    """A block that is singular by rounding is worked out anew and raised, as by moments."""
    _, by_rows = both(4, 1e-14)
    order, errors = eliminated([by_rows], 12)
    assert len(set(order)) == 11
    assert np.isfinite(errors).all()
    assert max(errors) <= 1


def wide() -> Network:
    b = NetworkBuilder("wide")
    x = b.input("x", 6)
    first = b.op("Relu", "relu", b.op("Linear", "first", x, b.random_weight("w1", 40, 6), b.random_weight("b1", 40)))
    b.output("y", b.op("Linear", "second", first, b.random_weight("w2", 5, 40), b.random_weight("b2", 5)))
    return b.build()


@pytest.mark.parametrize("bias", [True, False])
def test_a_wide_layer_is_pruned_by_its_outputs(monkeypatch: pytest.MonkeyPatch, bias: bool) -> None:
    """Beyond the columns that moments are kept of, as with their moments: the same channels, weights and outputs."""
    x = np.random.default_rng(0).normal(size=(30, 6)).astype(np.float32)
    made: list[Floats] = []
    for most in (solved_weights.MOST_MOMENTS, 8):
        monkeypatch.setattr(solved_weights, "MOST_MOMENTS", most)
        if not bias:
            monkeypatch.setattr(solved_weights, "bias_obstacle", lambda graph, node: "none")
        model = opened(wide())
        context = TechniqueContext(model, dataset=Dataset([{"x": x}], model.graph))
        (candidate,) = (each for each in PruneChannels().candidates(context) if each.choices)
        assert candidate.from_data
        report = PruneChannels(0.5).apply(context)
        assert "error of the outputs" in report.changed[0]
        assert model.weight("w2").shape == (5, 20)
        made.append(model.run({"x": x})["y"])
    np.testing.assert_allclose(made[1], made[0], atol=1e-5 * np.abs(made[0]).max())
