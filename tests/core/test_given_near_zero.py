"""Outputs of bounded functions far from their middle: what two kernels give there are not the same bits."""

from __future__ import annotations

import numpy as np
import pytest
from sketch import Sketch

from isobit.graph import Graph
from isobit.quantsim.checks.bounded_outputs import BOUNDED_ROUNDING, rounding_of
from isobit.quantsim.checks.given import _first_different

ROW = ("N", 4)


def graph(*ops: str) -> Graph:
    """The probabilities of the last of these operations, moved, as an output."""
    sketch = Sketch()
    x = sketch.input("x", *ROW)
    heads = [sketch.node(op, x, name=f"head.{op}", shape=ROW) for op in ops]
    y = heads[0] if len(heads) == 1 else sketch.node("Mul", *heads, name="both", shape=ROW)
    return sketch.graph(sketch.node("Reshape", y, name="moved", shape=("N", 2, 2)))


@pytest.mark.parametrize("ops", [("Sigmoid",), ("Softmax",), ("Sigmoid", "Sigmoid")])
def test_probabilities_of_nearly_nothing_are_alike_and_larger_differences_are_not(ops: tuple[str, ...]) -> None:
    given = {"out0": np.full((2, 2, 2), 1e-8, np.float32)}
    assert _first_different(graph(*ops), given, {"out0": given["out0"] + np.float32(1e-7)}, ()) is None
    assert _first_different(graph(*ops), given, {"out0": given["out0"] + np.float32(1e-4)}, ()) is not None


@pytest.mark.parametrize("ops", [("Relu",), ("Sigmoid", "Relu")])
def test_small_outputs_of_other_operations_are_compared_as_they_are(ops: tuple[str, ...]) -> None:
    given = {"out0": np.full((2, 2, 2), 1e-8, np.float32)}
    assert _first_different(graph(*ops), given, {"out0": given["out0"] * 2}, ()) is not None


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_the_largest_floats_are_compared_without_a_warning() -> None:
    given = {"out0": np.full((2, 2, 2), np.finfo(np.float32).max)}
    assert _first_different(graph("Relu"), given, {"out0": -given["out0"]}, ()) == ("out0", "is -6.0 dB from it")


def test_long_ways_and_ways_that_meet_again_are_walked_once() -> None:
    """A square of a square has 2^n ways back, and a way of 3,000 moves is deeper than Python's stack."""
    sketch = Sketch()
    y = sketch.node("Sigmoid", sketch.input("x", *ROW), name="head", shape=ROW)
    for index in range(100):
        y = sketch.node("Mul", y, y, name=f"square{index}", shape=ROW)
    for index in range(3000):
        y = sketch.node("Reshape", y, name=f"moved{index}", shape=ROW)
    z = sketch.node("Mul", y, sketch.node("Relu", y, name="relu", shape=ROW), name="product", shape=ROW)
    graph = sketch.graph(y, z)
    assert rounding_of(graph, y) == BOUNDED_ROUNDING
    assert rounding_of(graph, z) == 0
