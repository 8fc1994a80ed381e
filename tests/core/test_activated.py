"""The error behind an activation and its descent, against the definition and all combinations of integers."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from technique_networks import opened

from isobit.placement import QuantConfig
from isobit.plugins import registry
from isobit.quantsim import QuantSim
from isobit.techniques import AdaRound, FoldBatchNorms
from isobit.techniques.rounding import Grid, Objective, coordinate_descent
from isobit.techniques.rounding.behind_activation.activated_error import ActivatedError
from isobit.techniques.rounding.behind_activation.activation import Activation, activation_behind
from isobit.techniques.rounding.curvature import Curvature
from isobit.testing.networks import Network, NetworkBuilder

FUNCTIONS = {
    "relu": (Activation(np.zeros(1), 0.0), lambda y, o: np.maximum(y, 0)),
    "relu6": (Activation(np.ones(1), 0.0, 1.5), lambda y, o: np.clip(y, 0, 1.5)),
    "leaky": (Activation(np.array([0.1])), lambda y, o: np.where(y > 0, y, 0.1 * y)),
    "prelu": (Activation(np.arange(6) / 8), lambda y, o: np.where(y > 0, y, o / 8 * y)),
}


def case(name: str, seed: int = 0, *, two_models: bool = True, damping: float = 0.0):
    """A layer of 2 groups of 3 outputs and 4 columns; rows of the quantized and of the float model."""
    rng = np.random.default_rng(seed)
    r = (rng.standard_normal((80, 2, 4)) @ rng.standard_normal((4, 4))).astype(np.float32)
    x = (r + 0.1 * rng.standard_normal(r.shape) if two_models else r).astype(np.float32)
    weight, bias = rng.standard_normal((2, 3, 4)).astype(np.float32), rng.standard_normal((2, 3)) - 0.5
    function = FUNCTIONS[name][0]
    error = ActivatedError.of(function, x, r if two_models else None, weight, bias, centered=False, damping=damping)
    return error, x.astype(np.float64), r.astype(np.float64), weight, bias


def by_definition(name: str, x, r, weight, bias, value, g: int, o: int) -> float:
    """Mean over rows of the squared difference of the activated outputs."""
    function = FUNCTIONS[name][1]
    y, float_y = x[:, g] @ value.astype(np.float64) + bias[g, o], r[:, g] @ weight[g, o].astype(np.float64) + bias[g, o]
    return float(np.square(function(y, 3 * g + o) - function(float_y, 3 * g + o)).mean())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_error_is_that_of_the_definition(name: str) -> None:
    error, x, r, weight, bias = case(name)
    value = weight + np.float32(0.2)
    errors, power = error.error(value), error.power
    for g, o in np.ndindex(2, 3):
        assert errors[g, o] == pytest.approx(by_definition(name, x, r, weight, bias, value[g, o], g, o), rel=1e-6)
        float_y = FUNCTIONS[name][1](r[:, g] @ weight[g, o].astype(np.float64) + bias[g, o], 3 * g + o)
        assert power[g, o] == pytest.approx(np.square(float_y).mean(), rel=1e-6)


@pytest.mark.parametrize("two_models", [True, False])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_descent_against_every_combination(name: str, two_models: bool) -> None:
    """3 bits, 8**4 combinations an output, from the optimum without the activation: never worse, nearer the best."""
    ratios, starts = [], []
    for seed in range(6):
        error, x, r, weight, bias = case(name, seed, two_models=two_models)
        scale = np.broadcast_to(np.abs(weight).max(-1, keepdims=True) / 3.5, weight.shape).astype(np.float64)
        grid = Grid(np.ascontiguousarray(scale), np.zeros(weight.shape), -4, 3)
        hessian, cross = (np.einsum("ngi,ngj->gij", x, other) / len(x) for other in (x, r))
        linear = np.einsum("goj,gij->goi", weight.astype(np.float64), cross)
        quadratic = Objective(Curvature(hessian), linear, np.zeros((2, 3)))
        start = coordinate_descent(quadratic, grid, grid.nearest(weight))
        improved = error.descend(grid, start)
        assert np.all(error.error(grid.values(improved)) <= error.error(grid.values(start)) * (1 + 1e-9))
        combinations = np.array(list(product(range(-4, 4), repeat=4)), np.float64)
        for g, o in np.ndindex(2, 3):
            y = (combinations * scale[g, o]) @ x[:, g].T + bias[g, o]
            float_y = r[:, g] @ weight[g, o].astype(np.float64) + bias[g, o]
            function = FUNCTIONS[name][1]
            errors = np.square(function(y, 3 * g + o) - function(float_y, 3 * g + o)).mean(axis=1)
            reached, began = (
                by_definition(name, x, r, weight, bias, grid.values(q)[g, o], g, o) for q in (improved, start)
            )
            assert reached >= errors.min() * (1 - 1e-9)
            ratios.append((reached + 1e-12) / (errors.min() + 1e-12))
            starts.append((began + 1e-12) / (errors.min() + 1e-12))
    best, best_before = (np.mean(np.asarray(part) < 1 + 1e-6) for part in (ratios, starts))
    assert best > max(0.5, best_before)
    assert np.mean(np.log(ratios)) < 0.9 * np.mean(np.log(starts))


def test_a_weight_may_be_a_transposed_view() -> None:
    _, x, r, weight, bias = case("relu")
    grid = Grid(np.full(weight.shape, 0.3), np.zeros(weight.shape), -4, 3)
    results = []
    for layout in (weight, weight.transpose(2, 1, 0).copy().transpose(2, 1, 0)):
        rows = (part.astype(np.float32) for part in (x, r))
        error = ActivatedError.of(FUNCTIONS["relu"][0], *rows, layout, bias, centered=True)
        results.append(error.descend(grid, grid.nearest(layout)))
    np.testing.assert_array_equal(*results)


def test_damping_is_for_each_row() -> None:
    """The same rows three times over are the same problem."""
    _, x, r, weight, bias = case("relu", 2)
    grid = Grid(np.full(weight.shape, 0.3), np.zeros(weight.shape), -4, 3)
    results = []
    for times, damping in ((1, 0.5), (3, 0.5), (1, 0.0)):
        rows = (np.tile(part, (times, 1, 1)).astype(np.float32) for part in (x, r))
        error = ActivatedError.of(FUNCTIONS["relu"][0], *rows, weight, bias, centered=False, damping=damping)
        results.append(error.descend(grid, np.zeros(weight.shape)))
    np.testing.assert_array_equal(results[0], results[1])
    assert np.any(results[0] != results[2]), "it is felt"


def test_rows_that_are_cut_off_in_both_count_for_nothing() -> None:
    """Rows whose output a Relu cuts off in both models have no weight: the integers fit the other rows alone."""
    x = np.float32([[1, 0], [1, 0], [0, 1], [0, 1]])[:, None]
    weight, bias = np.float32([[[1.4, -1.4]]]), np.zeros((1, 1))
    error = ActivatedError.of(Activation(np.zeros(1), 0.0), x, None, weight, bias, centered=False, damping=0.0)
    grid = Grid(np.ones((1, 1, 2)), np.zeros((1, 1, 2)), -4, 3)
    np.testing.assert_array_equal(error.descend(grid, np.array([[[3.0, -4.0]]])), [[[1, -4]]])
    unclipped = ActivatedError.of(Activation(np.ones(1)), x, None, weight, bias, centered=False, damping=0.0)
    np.testing.assert_array_equal(unclipped.descend(grid, np.array([[[3.0, -4.0]]])), [[[1, -1]]])


def test_centered_is_with_the_bias_that_takes_up_the_mean() -> None:
    _, x, r, weight, bias = case("relu")
    activation, value = FUNCTIONS["relu"][0], weight + np.float32(0.3)
    error = ActivatedError.of(activation, x.astype(np.float32), r.astype(np.float32), weight, bias, centered=True)
    errors = error.error(value)
    for g, o in np.ndindex(2, 3):
        y, float_y = x[:, g] @ value[g, o].astype(np.float64), r[:, g] @ weight[g, o].astype(np.float64)
        moved = bias[g, o] + float_y.mean() - y.mean()
        expected = np.square(np.maximum(y + moved, 0) - np.maximum(float_y + bias[g, o], 0)).mean()
        assert errors[g, o] == pytest.approx(expected, rel=1e-5)


def network(*activations: str) -> Network:
    b = NetworkBuilder("activations", 3)
    x = b.input("x", 6, 4, 4)
    for index, name in enumerate(activations):
        x = b.conv(f"conv{index}", x, 6, 1)
        if name == "Clip":
            x = b.relu6(f"act{index}", x)
        elif name == "PRelu":
            x = b.op("PRelu", f"act{index}", x, b.weight(f"slope{index}", np.full(6, 0.2)))
        elif name == "LeakyRelu":
            x = b.op("LeakyRelu", f"act{index}", x, alpha=0.1)
        elif name:
            x = b.op(name, f"act{index}", x)
    b.output("y", x)
    return b.build()


def test_which_activation_is_behind_a_layer() -> None:
    described = network("Relu", "Clip", "PRelu", "LeakyRelu", "Sigmoid", "", "Relu")
    model = opened(described)
    activations = [activation_behind(model.graph, model.graph.node(f"conv{i}"), model.weight) for i in range(7)]
    relu, clip, prelu, leaky, sigmoid, nothing, last = activations
    assert (sigmoid, nothing) == (None, None)
    for activation, low, high, slope in (
        (relu, 0, np.inf, 0),
        (clip, 0, 6, 1),
        (leaky, -np.inf, np.inf, 0.1),
        (last, 0, np.inf, 0),
    ):
        assert activation is not None
        assert (activation.low, activation.high) == (low, high)
        np.testing.assert_allclose(activation.slope, [slope], rtol=1e-6)
    assert prelu is not None
    np.testing.assert_allclose(prelu.slope, np.full(6, 0.2), rtol=1e-6)


@pytest.mark.parametrize("sequential", [False, True])
def test_adaround_lowers_the_error_behind_the_activation(sequential: bool) -> None:
    """The error falls on the calibration rows, and the weights lie on their grids."""
    described = network("Relu", "Clip")
    data = described.batch(64)
    errors = {}
    for aware in (False, True):
        sim = QuantSim.of_backend_model(
            opened(described), registry().target("default"), QuantConfig("int3 per-channel")
        )
        sim.apply(FoldBatchNorms())
        before = opened(described)
        (report,) = sim.apply(AdaRound(activation_aware=aware, sequential=sequential), data=data)
        sim.calibrate(data)
        expected, quantized = before.run(data)["y"], sim.run(data)["y"]
        errors[aware] = float(np.square(quantized - expected).mean())
        for site, encoding in report.encodings.items():
            value = sim.backend_model.weight(str(site))
            np.testing.assert_array_equal(value, encoding.fake_quantize(value))
    assert errors[True] < errors[False]
