"""Tensors and weights whose values lie below every scale stay in float, with a reason: on a grid they would be zero."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from small_models import model, node, value

import isobit
from isobit.errors import CoverageWarning
from isobit.plugins import registry

RNG = np.random.default_rng(12)
X = RNG.standard_normal((16, 8)).astype(np.float32)


def normal(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)


def perceptron(first: float = 1.0, middle: str = "Relu", last: float = 1.0) -> onnx.ModelProto:
    nodes = [node("MatMul", "x a", "h"), node(middle, "h", "r"), node("MatMul", "r b", "y")]
    constants = {"a": first * normal(8, 8), "b": last * normal(8, 4)}
    return model(nodes, [value("x", ["n", 8])], [value("y", ["n", 4])], constants)


def decibels(sim: isobit.QuantSim) -> float:
    exact = sim.run_float(X)["y"].astype(np.float64)
    return float(10 * np.log10(np.square(exact).sum() / np.square(exact - sim.run(X)["y"]).sum()))


@pytest.mark.parametrize(
    ("proto", "weight"),
    [
        (perceptron(first=1e-11), "a"),
        (perceptron(last=1e-9), "b"),
        (perceptron(first=1e-11, last=1e11), "a"),
        (perceptron(first=1e-7, middle="Tanh"), "a"),
    ],
)
def test_tiny_values_are_not_lost(proto: onnx.ModelProto, weight: str) -> None:
    with pytest.warns(CoverageWarning, match=f"the smallest scale is 1.2e-07: multiply it by a constant: {weight}"):
        sim = isobit.quantize(proto, X, method="minmax", recipe="basic", progress=False)
    assert "smallest scale" in sim.report.left_in_float[weight]
    assert decibels(sim) > 30


def test_small_values_that_a_grid_resolves_have_one() -> None:
    sim = isobit.quantize(perceptron(first=1e-5), X, method="minmax", recipe="basic", progress=False)
    assert sim.report.counts["weight"] == 2
    assert decibels(sim) > 25


def test_a_tensor_of_zeros_has_a_grid() -> None:
    sim = isobit.quantize(perceptron(first=0.0), X, method="minmax", recipe="basic", progress=False)
    assert sim.report.counts["weight"] == 2


def test_a_tiny_factor_is_not_lost() -> None:
    nodes = [node("Mul", "x large", "h"), node("Mul", "h k", "s"), node("MatMul", "s b", "y")]
    constants = {"large": np.float32(1e8), "k": 1e-8 * normal(8), "b": normal(8, 4)}
    proto = model(nodes, [value("x", ["n", 8])], [value("y", ["n", 4])], constants)
    sim = isobit.QuantSim(proto, target="default")
    sim.calibrate(X, "minmax")
    assert "smallest scale" in sim.report.left_in_float["k"]
    assert decibels(sim) > 25


def test_a_layer_that_stays_in_float_asks_for_no_format() -> None:
    """The target has no format for its weight, and needs none."""
    target = registry().target("default")
    conv = frozenset({"Conv"})
    strict = replace(target, ops=conv, weight_granularities=("per-channel",), per_channel_ops=conv)
    sim = isobit.QuantSim(perceptron(), target=strict)
    assert sim.report.left_in_float["a"] == "Linear n_h stays in float"
