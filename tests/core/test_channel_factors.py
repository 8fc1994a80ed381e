"""A Mul by one constant a channel runs with the curve beside it; every other Mul is an operation as before."""

from __future__ import annotations

import numpy as np
import pytest
from registries import rounds_all

from isobit.graph import Graph, Tensor
from isobit.graph.sites import Weight
from isobit.placement import QuantConfig, place
from isobit.testing.networks import NetworkBuilder


def scaled(before: str, behind: str, shape: tuple[int, ...] = (8, 1, 1)) -> Graph:
    """Conv, `before`, Mul by constants of `shape`, `behind`, Conv."""
    b = NetworkBuilder("scaled", 0)
    h = b.conv("first", b.input("x", 4, 6, 6), 8, 1)
    h = b.op(before, "before", h) if before else h
    h = b.op("Mul", "scale", h, b.weight("factors", np.full(shape, 0.5)))
    h = b.op(behind, "behind", h) if behind else h
    b.output("y", b.conv("last", h, 4, 1))
    return b.build().graph


def plan(graph: Graph, target: str, **config):
    return place(graph, rounds_all(target), QuantConfig(**config))


@pytest.mark.parametrize("target", ["default", "onnxruntime-cpu"])
@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 8, 1, 1)])
def test_nothing_is_rounded_between_the_factors_and_the_curve(target: str, shape: tuple[int, ...]) -> None:
    behind_curve = plan(scaled("HardSwish", "", shape), target)
    assert Tensor("before") not in behind_curve.placements
    assert Tensor("scale") in behind_curve.placements
    before_curve = plan(scaled("", "HardSwish", shape), target)
    assert Tensor("first") in before_curve.placements
    assert Tensor("scale") not in before_curve.placements
    assert Tensor("behind") in before_curve.placements
    for found in (behind_curve, before_curve):
        assert Weight("factors") not in found.placements
        assert "factors" in found.floats


@pytest.mark.parametrize("target", ["default", "onnxruntime-cpu"])
@pytest.mark.parametrize(
    ("before", "behind", "shape"),
    [("", "", (8, 1, 1)), ("Relu", "", (8, 1, 1)), ("HardSwish", "", (1, 1, 1)), ("HardSwish", "", (8, 6, 6))],
)
def test_other_products_are_operations_as_before(target: str, before: str, behind: str, shape: tuple[int, ...]) -> None:
    found = plan(scaled(before, behind, shape), target)
    assert Weight("factors") in found.placements
    assert Tensor("scale") in found.placements


def test_what_the_user_excludes_and_what_a_kernel_takes_along_takes_no_part() -> None:
    found = plan(scaled("HardSwish", ""), "default", exclude=["before"])
    assert Weight("factors") in found.placements
    b = NetworkBuilder("relu6", 0)
    h = b.relu6("act", b.conv("first", b.input("x", 4, 6, 6), 8, 1))
    h = b.op("Mul", "scale", h, b.weight("factors", np.full((8, 1, 1), 0.5)))
    b.output("y", b.conv("last", h, 4, 1))
    found = plan(b.build().graph, "default")
    assert Tensor("act") in found.placements  # the layer's kernel ends there, with integers
    assert Weight("factors") in found.placements
