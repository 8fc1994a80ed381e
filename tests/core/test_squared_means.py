"""Squares of means: those of a variance need them exact, those of a norm do not."""

from __future__ import annotations

from time import process_time

import pytest
from registries import rounds_all
from sketch import Sketch

from isobit.canonical import canonicalize
from isobit.graph import Tensor
from isobit.placement import place
from isobit.placement.exact_tensors import exact_tensors
from isobit.placement.signal_tensors import signal_tensors

TARGET = rounds_all("default")
ROW = ("N", 8)


@pytest.mark.parametrize("norm", ["ReduceL2", "squares"])
def test_a_norm_of_means_leaves_the_network_before_it_as_it_is(norm: str) -> None:
    """Embeddings of unit length behind a pooled residual: small squares of means are rounded as the means are."""
    image = ("N", 8, 4, 4)
    sketch = Sketch()
    y = sketch.input("x", *image)
    for i in range(2):
        window = {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1), "group": 1}
        h = sketch.node("Conv", y, sketch.random(f"conv{i}.w", 8, 8, 3, 3), name=f"conv{i}", shape=image, **window)
        y = sketch.node("Relu", sketch.node("Add", h, y, name=f"sum{i}", shape=image), name=f"relu{i}", shape=image)
    mean = sketch.node("ReduceMean", y, name="mean", shape=ROW, axes=(2, 3), keepdims=0)
    rows = {"shape": ("N", 1), "axes": (1,), "keepdims": 1}
    if norm == "squares":
        square = sketch.node("Mul", mean, mean, name="square", shape=ROW)
        length = sketch.node("Sqrt", sketch.node("ReduceSum", square, name="power", **rows), name="l", shape=("N", 1))
    else:
        length = sketch.node(norm, mean, name="l", **rows)
    plan = place(canonicalize(sketch.graph(sketch.node("Div", mean, length, name="unit", shape=ROW))), TARGET)
    assert {"relu0", "relu1", "mean"}.isdisjoint(plan.floats)
    assert Tensor("relu1") in plan.placements


def test_a_variance_of_two_means_needs_both_exact() -> None:
    """E[x^2] - E[x]^2, here with the correction for a sample."""
    sketch = Sketch()
    h = sketch.node("MatMul", sketch.input("x", *ROW), sketch.random("w", 8, 8), name="h", shape=ROW)
    rows = {"shape": ("N", 1), "axes": (1,), "keepdims": 1}
    of_squares = sketch.node("ReduceMean", sketch.node("Mul", h, h, name="h2", shape=ROW), name="of_squares", **rows)
    mean = sketch.node("ReduceMean", h, name="mean", **rows)
    square = sketch.node("Mul", mean, mean, name="square", shape=("N", 1))
    more = sketch.node("Mul", square, sketch.weight("k", 8 / 7), name="more", shape=("N", 1))
    variance = sketch.node("Sub", of_squares, more, name="variance", shape=("N", 1))
    spread = sketch.node("Sqrt", variance, name="spread", shape=("N", 1))
    plan = place(canonicalize(sketch.graph(sketch.node("Mul", h, spread, name="scaled", shape=ROW))), TARGET)
    assert "takes its root" in plan.floats["mean"]


def test_long_products_are_looked_through_once() -> None:
    """Thousands of factors: a square of each would be looked for through all before it."""
    sketch = Sketch()
    x = sketch.input("x", *ROW)
    for i in range(4000):
        x = sketch.node("Mul", x, sketch.weight(f"k{i}", 1.5), name=f"m{i}", shape=ROW)
    graph = sketch.graph(x)
    began = process_time()
    exact_tensors(graph, signal_tensors(graph), lambda name: False)
    assert process_time() - began < 5  # a minute where each looks back
