"""Integers and booleans that a weight meets are signal, and masks, positions and shapes made of integers are not."""

from __future__ import annotations

import pytest
from registries import rounds_all
from sketch import Sketch

from isobit.canonical import canonicalize
from isobit.graph import Graph, Input, Tensor, Weight
from isobit.placement import Plan, place

TARGETS = [rounds_all(name) for name in ("default", "onnxruntime-cpu")]


def linear(sketch: Sketch, x: str, size: int) -> Graph:
    sketch.node("MatMul", x, sketch.random("w", size, 3), name="y", shape=("N", 3))
    return canonicalize(sketch.graph("y"))


def levels(dtype: str) -> Graph:
    """A record of integers, scaled."""
    sketch = Sketch()
    x = sketch.node("Cast", sketch.input("pcm", "N", 6, dtype=dtype), name="f", shape=("N", 6), to="float32")
    return linear(sketch, sketch.node("Mul", x, sketch.weight("k", 1 / 512), name="s", shape=("N", 6)), 6)


def board() -> Graph:
    """Planes of a board as booleans, convolved."""
    sketch = Sketch()
    x = sketch.input("board", "N", 2, 5, 5, dtype="bool")
    x = sketch.node("Cast", x, name="f", shape=("N", 2, 5, 5), to="float32")
    sketch.node("Conv", x, sketch.random("w", 4, 2, 3, 3), name="y", shape=("N", 4, 3, 3))
    return canonicalize(sketch.graph("y"))


def one_hot() -> Graph:
    """A class as a code, by a comparison."""
    sketch = Sketch()
    x = sketch.input("kind", "N", 1, dtype="int64")
    x = sketch.node("Equal", x, sketch.weight("all", [0, 1, 2, 3], "int64"), name="eq", shape=("N", 4), dtype="bool")
    return linear(sketch, sketch.node("Cast", x, name="f", shape=("N", 4), to="float32"), 4)


def beside_floats() -> Graph:
    """Floats and counts in one row."""
    sketch = Sketch()
    x = sketch.input("x", "N", 4)
    n = sketch.node("Cast", sketch.input("n", "N", 2, dtype="int32"), name="f", shape=("N", 2), to="float32")
    return linear(sketch, sketch.node("Concat", x, n, name="cat", shape=("N", 6), axis=1), 6)


NETWORKS = {
    **{dtype: levels(dtype) for dtype in ("int16", "uint16", "int32", "int64", "bool", "uint8")},
    "board": board(),
    "one-hot": one_hot(),
    "beside floats": beside_floats(),
}


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
@pytest.mark.parametrize("name", NETWORKS)
def test_what_meets_a_weight_is_signal(name: str, target: object) -> None:
    graph = NETWORKS[name]
    plan = place(graph, target)  # type: ignore[arg-type]
    assert Weight("w") in plan.placements
    read = graph.node("y").inputs[0]
    assert {placement.tensor for placement in plan.of_kind("activation")} >= {read, "f"}


def masked(factor: float) -> Plan:
    """Scores with a mask on them, which comes from the integers that are also read as a code."""
    sketch = Sketch()
    kinds = sketch.input("kind", "N", 4, dtype="int64")
    code = sketch.node("Cast", kinds, name="code", shape=("N", 4), to="float32")
    scores = sketch.node("MatMul", code, sketch.random("w", 4, 4), name="scores", shape=("N", 4))
    mask = sketch.node("Equal", kinds, sketch.weight("pad", 0, "int64"), name="eq", shape=("N", 4), dtype="bool")
    mask = sketch.node("Cast", mask, name="mask", shape=("N", 4), to="float32")
    mask = sketch.node("Mul", mask, sketch.weight("far", factor), name="bias", shape=("N", 4))
    sketch.node("Add", scores, mask, name="sum", shape=("N", 4))
    graph = canonicalize(sketch.graph(sketch.node("Softmax", "sum", name="p", shape=("N", 4), axis=-1)))
    return place(graph, TARGETS[0])


@pytest.mark.parametrize("factor", [-1e4, -1e9])
def test_a_mask_of_the_same_integers_stays_a_mask(factor: float) -> None:
    plan = masked(factor)
    assert Weight("w") in plan.placements
    assert Tensor("code") in plan.placements
    assert plan.floats["bias"] == "computed from shapes, masks or constants alone"
    assert plan.floats["sum"] == "Add puts a mask on it"


def test_a_mask_that_a_weight_meets_as_well_is_no_number_to_add() -> None:
    sketch = Sketch()
    mask = sketch.node("Cast", sketch.input("m", "N", 4, dtype="bool"), name="f", shape=("N", 4), to="float32")
    scores = sketch.node("MatMul", mask, sketch.random("w", 4, 4), name="scores", shape=("N", 4))
    bias = sketch.node("Mul", mask, sketch.weight("far", -1e9), name="bias", shape=("N", 4))
    graph = canonicalize(sketch.graph(sketch.node("Add", scores, bias, name="sum", shape=("N", 4))))
    plan = place(graph, TARGETS[0])
    assert Input("scores", 0) in plan.placements
    assert plan.floats["bias"] == "Mul puts a mask on it"
    assert plan.floats["sum"] == "Add puts a mask on it"


def test_what_follows_from_shapes_stays_as_it_is() -> None:
    sketch = Sketch()
    x = sketch.input("x", "N", 4, dtype="int32")
    shape = sketch.node("Shape", x, name="shape", shape=(2,), dtype="int64")
    size = sketch.node("Cast", shape, name="size", shape=(2,), to="float32")
    sketch.node("MatMul", size, sketch.random("v", 2, 4), name="v_", shape=(4,))
    x = sketch.node("Cast", x, name="f", shape=("N", 4), to="float32")
    sketch.node("MatMul", x, sketch.random("w", 4, 4), name="y", shape=("N", 4))
    plan = place(canonicalize(sketch.graph("y", "v_")), TARGETS[0])
    assert Weight("w") in plan.placements
    assert Weight("v") not in plan.placements
    assert plan.floats["size"] == "computed from shapes, masks or constants alone"


def test_a_time_embedding_is_signal_from_its_sine_on() -> None:
    sketch = Sketch()
    step = sketch.node("Cast", sketch.input("t", "N", 1, dtype="int64"), name="f", shape=("N", 1), to="float32")
    phase = sketch.node("Mul", step, sketch.random("frequencies", 4), name="phase", shape=("N", 4))
    graph = linear(sketch, sketch.node("Sin", phase, name="sin", shape=("N", 4)), 4)
    plan = place(graph, TARGETS[0])
    assert Weight("w") in plan.placements
    assert Tensor("sin") in plan.placements
    assert "phase" in plan.floats
    assert "f" in plan.floats
