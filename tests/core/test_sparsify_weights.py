"""Zeros in weights: patterns, what the other weights make up for, and what is left alone."""

from __future__ import annotations

import numpy as np
import pytest
from technique_networks import opened

from isobit.data import Dataset
from isobit.errors import FormatError
from isobit.techniques import SparsifyWeights
from isobit.techniques.context import TechniqueContext
from isobit.techniques.low_rank.factorise import NO_DATA
from isobit.techniques.pruning.sparse_solver import Pattern, masked, sparse
from isobit.testing import interpreter
from isobit.testing.networks import NETWORKS, Network, NetworkBuilder


def chain() -> Network:
    """A convolution of 3 channels, one of 8 and one of 8 in two groups, and a linear layer."""
    b = NetworkBuilder("chain")
    x = b.conv("second", b.op("Relu", "relu", b.conv("first", b.input("x", 3, 6, 6), 8)), 8)
    x = b.conv("grouped", x, 8, group=2)
    b.output("y", b.linear("fc", b.global_pool("gap", x), 4))
    return b.build()


def context(network: Network, samples: int = 40) -> TechniqueContext:
    model = opened(network)
    return TechniqueContext(model, dataset=Dataset([network.batch(samples, 1)], model.graph) if samples else None)


def in_fours(weight: np.ndarray) -> np.ndarray:
    """How many weights of each four neighbouring input channels are zero, at every tap of the kernel."""
    out, inputs, *kernel = weight.shape
    return (weight.reshape(out, inputs // 4, 4, *kernel) == 0).sum(2)


@pytest.mark.parametrize("samples", [0, 40])
def test_two_of_each_four_input_channels_stay(samples: int) -> None:
    run = context(chain(), samples)
    report = SparsifyWeights().apply(run)
    for name in ("second", "grouped", "fc"):
        weight = run.model.weight(f"{name}.weight")
        assert (in_fours(weight) == 2).all()
        assert weight.shape == chain().weights[f"{name}.weight"].shape
    assert [text.split(":")[0] for text in report.changed] == ["second", "grouped", "fc"]
    assert report.left == {"first": "its 3 input channels are no multiple of 4"}
    assert report.notes == (() if samples else (NO_DATA,))


def test_a_share_of_each_layer_is_zero() -> None:
    for samples in (0, 40):
        run = context(chain(), samples)
        assert not SparsifyWeights("75%", exclude=("fc",)).apply(run).left.keys() - {"fc"}
        shares = [np.mean(run.model.weight(f"{name}.weight") == 0) for name in ("first", "second", "grouped")]
        np.testing.assert_allclose(shares, 0.75, atol=0.01)
        assert np.all(run.model.weight("fc.weight") != 0)


def test_magnitudes_choose_without_data() -> None:
    weight = np.array([[1.0, -4.0, 2.0, 3.0, 0.1, 0.2, -0.4, 0.3]])
    np.testing.assert_array_equal(masked(weight, Pattern.of("2:4")), [[0, -4, 0, 3, 0, 0, -0.4, 0.3]])
    np.testing.assert_array_equal(masked(weight, Pattern.of("50%")), [[1, -4, 2, 3, 0, 0, 0, 0]])


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "50%"])
def test_others_make_up_for_what_goes(pattern: str) -> None:
    """Less error than magnitudes, with as many zeros; not far from the best weights for the mask that was chosen."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((4000, 160)) @ rng.standard_normal((160, 160))
    moments, weight = rows.T @ rows / 4000, rng.standard_normal((6, 160))

    def error(new: np.ndarray) -> float:
        return float((((weight - new) @ moments) * (weight - new)).sum())

    found, plain = sparse(weight, moments, Pattern.of(pattern)), masked(weight, Pattern.of(pattern))
    assert np.sum(found == 0) == np.sum(plain == 0)
    assert error(found) < 0.75 * error(plain)
    best = np.zeros_like(weight)
    for row, stays in enumerate(found != 0):
        part = moments[np.ix_(stays, stays)]
        best[row, stays] = np.linalg.solve(part, moments[stays] @ weight[row])
    assert error(best) <= error(found) * (1 + 1e-9)
    assert error(found) < 1.05 * error(best)


def test_without_correlations_it_is_magnitude_in_units_of_the_inputs() -> None:
    """Independent inputs: nothing can be made up, and the square of weight times input decides."""
    rng = np.random.default_rng(1)
    weight, powers = rng.standard_normal((5, 40)), rng.uniform(0.1, 10, 40)
    found = sparse(weight, np.diag(powers), Pattern.of("2:4"))
    expected = masked(weight * np.sqrt(powers), Pattern.of("2:4")) / np.sqrt(powers)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_the_error_that_is_said_is_the_one_on_the_data() -> None:
    network = chain()
    run = context(network)
    report = SparsifyWeights("2:4", exclude=("grouped", "fc")).apply(run)
    said = float(report.changed[0].rpartition(" ")[2])
    batch = network.batch(40, 1)
    outputs, expected = (
        interpreter.interpret(m.graph, m.weight, batch)["second"] for m in (run.model, opened(network))
    )
    centered = expected - expected.mean((0, 2, 3), keepdims=True)
    assert np.square(outputs - expected).sum() / np.square(centered).sum() == pytest.approx(said, rel=0.05)


def test_shared_weights_stay() -> None:
    report = SparsifyWeights().apply(context(NETWORKS["shared_weights"](), 0))
    assert report.left == {
        "fc1": "the weight of fc1 is shared with fc2",
        "fc2": "the weight of fc2 is shared with fc1",
    }


@pytest.mark.parametrize("pattern", ["4:2", "2:", "half", "0%", "100%", "0:4"])
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(FormatError, match="is no pattern of zeros: write '2:4'"):
        SparsifyWeights(pattern)
