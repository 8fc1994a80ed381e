"""What becomes a size on which layers run is exact from the input on: tensors in float, weights in 16 bits."""

from __future__ import annotations

import numpy as np
import pytest
from registries import own_registry
from sketch import Sketch

from isobit.canonical import canonicalize
from isobit.graph import Graph, Shape, Tensor, Weight
from isobit.graph.sites import Input
from isobit.placement import Plan, QuantConfig, place
from isobit.targets import Target

TARGETS = [own_registry().target(name) for name in ("default", "onnxruntime-cpu")]
ROW = ("N", 8)


def layer(sketch: Sketch, x: str, name: str, shape: Shape = ROW) -> str:
    return sketch.node("MatMul", x, sketch.random(f"{name}.w", 8, 8), name=name, shape=shape)


def durations(sketch: Sketch, hidden: str) -> str:
    """Two layers, and the exponential of what they say, as whole numbers; the first layer alone makes no size."""
    inner = sketch.node("Tanh", layer(sketch, hidden, "inner"), name="bent", shape=ROW)
    times = sketch.node("Exp", layer(sketch, inner, "outer"), name="times", shape=ROW)
    scaled = sketch.node("Mul", times, sketch.input("pace", 1), name="scaled", shape=ROW)
    return sketch.node("Ceil", scaled, name="whole", shape=ROW)


def count(sketch: Sketch, whole: str) -> str:
    total = sketch.node("ReduceSum", whole, name="total", shape=(1,), axes=(0, 1), keepdims=0)
    return sketch.node("Cast", total, name="count", shape=(1,), dtype="int64", to="int64")


def regulated() -> Graph:
    """A length regulator: which frame belongs to which row, as a mask of positions."""
    sketch = Sketch()
    hidden = layer(sketch, sketch.input("x", *ROW), "encoder")
    whole = durations(sketch, hidden)
    ends = sketch.node("CumSum", whole, sketch.weight("axis", 1, np.int64), name="ends", shape=ROW)
    zero, one = sketch.weight("zero", 0, np.int64), sketch.weight("one", 1, np.int64)
    frames = sketch.node("Range", zero, count(sketch, whole), one, name="frames", shape=("T",), dtype="int64")
    places = sketch.node("Cast", frames, name="places", shape=("T",), to="float32")
    column = sketch.node("Reshape", places, name="column", shape=("T", 1, 1), to=(-1, 1, 1))
    before = sketch.node("Less", column, ends, name="before", shape=("T", "N", 8), dtype="bool")
    mask = sketch.node("Cast", before, name="mask", shape=("T", "N", 8), to="float32")
    spread = sketch.node("Mul", mask, hidden, name="spread", shape=("T", "N", 8))
    return canonicalize(sketch.graph(layer(sketch, spread, "decoder", ("T", "N", 8))))


def cut() -> Graph:
    """What is left of a row follows from its durations."""
    sketch = Sketch()
    hidden = layer(sketch, sketch.input("x", *ROW), "encoder")
    end, zero = count(sketch, durations(sketch, hidden)), sketch.weight("zero", [0], np.int64)
    left = sketch.node("Slice", hidden, zero, end, zero, name="left", shape=("T", 8))
    return canonicalize(sketch.graph(layer(sketch, left, "decoder", ("T", 8))))


def spread_out() -> Graph:
    """A predicted size, by way of a concatenated shape."""
    sketch = Sketch()
    hidden = layer(sketch, sketch.input("x", *ROW), "encoder")
    rest = sketch.weight("rest", [8], np.int64)
    shape = sketch.node(
        "Concat", count(sketch, durations(sketch, hidden)), rest, name="shape", shape=(2,), dtype="int64", axis=0
    )
    wide = sketch.node("Expand", sketch.random("start", 1, 8), shape, name="wide", shape=("T", 8))
    both = sketch.node(
        "MatMul", wide, sketch.node("Transpose", hidden, name="turned", shape=(8, "N"), perm=(1, 0)), name="both",
        shape=("T", "N"),
    )  # fmt: skip
    return canonicalize(sketch.graph(both, layer(sketch, hidden, "decoder")))


def counted_in_floats() -> Graph:
    """A Range whose bounds are floats."""
    sketch = Sketch()
    hidden = layer(sketch, sketch.input("x", *ROW), "encoder")
    whole = durations(sketch, hidden)
    total = sketch.node("ReduceSum", whole, name="total", shape=(), axes=(0, 1), keepdims=0)
    zero, one = sketch.weight("zero", 0.0), sketch.weight("one", 1.0)
    frames = sketch.node("Range", zero, total, one, name="frames", shape=("T",))
    column = sketch.node("Reshape", frames, name="column", shape=("T", 1), to=(-1, 1))
    many = sketch.node("Mul", column, sketch.random("k", 8), name="many", shape=("T", 8))
    return canonicalize(sketch.graph(layer(sketch, many, "decoder", ("T", 8)), layer(sketch, hidden, "head")))


NETWORKS = {"mask": regulated(), "slice": cut(), "expand": spread_out(), "range": counted_in_floats()}
EXACT = ("encoder", "inner", "bent", "outer", "times", "scaled", "whole", "total")


def rounded(plan: Plan, name: str, reader: str) -> bool:
    """Whether a reader gets a tensor from a grid."""
    return Tensor(name) in plan.placements or Input(reader, 0) in plan.placements


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_whole_way_to_a_size_is_exact(name: str, target: Target) -> None:
    graph = NETWORKS[name]
    plan = place(graph, target)
    for tensor in graph.tensors.keys() & {*EXACT, "x", "pace"}:
        assert "makes a size of it" in plan.floats[tensor], tensor
        assert Tensor(tensor) not in plan.placements
    for reader in ("encoder", "inner", "outer"):
        assert not rounded(plan, graph.node(reader).input(0) or "", reader)
        assert plan.placements[Weight(f"{reader}.w")].spec.type_name == "int16"
    others = [weight for weight in ("decoder.w", "head.w") if weight in graph.weights]
    assert all(plan.placements[Weight(weight)].spec.type_name == "int8" for weight in others)
    assert any("16 bits" in note and "makes a size of it" in note for note in plan.notes)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_what_others_read_of_it_is_rounded_for_them(target: Target) -> None:
    graph = NETWORKS["range"]
    assert rounded(place(graph, target), "encoder", "head")


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_positions_are_compared_exactly(target: Target) -> None:
    plan = place(NETWORKS["mask"], target)
    assert "compares it as a position" in plan.floats["ends"]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_a_size_behind_which_no_layer_runs_leaves_layers_alone(target: Target) -> None:
    sketch = Sketch()
    picture = sketch.input("picture", "H", 8)
    hidden = sketch.node("Tanh", layer(sketch, sketch.input("x", *ROW), "hidden"), name="bent", shape=ROW)
    end = count(sketch, sketch.node("Ceil", layer(sketch, hidden, "box"), name="whole", shape=ROW))
    zero = sketch.weight("zero", [0], np.int64)
    sketch.node("Slice", picture, zero, end, zero, name="cut", shape=("T", 8))
    plan = place(canonicalize(sketch.graph("cut")), target)
    assert plan.placements[Weight("box.w")].spec.type_name == "int8"
    assert rounded(plan, "bent", "box")


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_what_is_counted_of_comparisons_leaves_layers_alone(target: Target) -> None:
    sketch = Sketch()
    scores = layer(sketch, sketch.input("x", *ROW), "scores")
    found = sketch.node("Greater", scores, sketch.weight("half", 0.5), name="found", shape=ROW, dtype="bool")
    ones = sketch.node("Cast", found, name="ones", shape=ROW, dtype="int64", to="int64")
    number = sketch.node("ReduceSum", ones, name="number", shape=(1,), dtype="int64", axes=(0, 1), keepdims=0)
    zero = sketch.weight("zero", [0], np.int64)
    kept = sketch.node("Slice", scores, zero, number, zero, name="kept", shape=("T", 8))
    plan = place(canonicalize(sketch.graph(layer(sketch, kept, "last", ("T", 8)))), target)
    assert plan.placements[Weight("scores.w")].spec.type_name == "int8"
    assert rounded(plan, "x", "scores")


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_an_override_ends_the_way(target: Target) -> None:
    plan = place(NETWORKS["slice"], target, QuantConfig(overrides={"bent": "uint8"}))
    assert plan.placements[Tensor("bent")].spec.type_name == "uint8"
    assert plan.placements[Weight("inner.w")].spec.type_name == "int8"
    assert plan.placements[Weight("outer.w")].spec.type_name == "int16"


def bins(op: str) -> Graph:
    """Which bin of a spline, table or histogram a value lies in."""
    sketch = Sketch()
    value = layer(sketch, sketch.input("x", *ROW), "value")
    edges = layer(sketch, sketch.input("y", *ROW), "edges")
    scaled = sketch.node("Mul", edges, sketch.weight("k", 3.5), name="scaled", shape=ROW)
    behind = sketch.node("GreaterOrEqual", value, scaled, name="behind", shape=ROW, dtype="bool")
    ones = sketch.node("Cast", behind, name="ones", shape=ROW, dtype="int64", to="int64")
    index = sketch.node("ReduceSum", ones, name="index", shape=("N", 1), dtype="int64", axes=(1,), keepdims=1)
    data = sketch.random("table", 9, 8) if op == "Gather" else scaled
    found = sketch.node(op, data, index, name="found", shape=("N", 1), axis=0 if op == "Gather" else 1)
    return canonicalize(sketch.graph(found))


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
@pytest.mark.parametrize("op", ["Gather", "GatherElements", "ScatterND"])
def test_what_is_compared_for_an_index_is_exact(op: str, target: Target) -> None:
    if op == "ScatterND":
        sketch = Sketch()
        values = [layer(sketch, sketch.input(name, *ROW), f"{name}.h") for name in "xy"]
        chosen = sketch.node("Less", *values, name="chosen", shape=ROW, dtype="bool")
        where = sketch.node("NonZero", chosen, name="where", shape=(2, None), dtype="int64")
        turned = sketch.node("Transpose", where, name="turned", shape=(None, 2), dtype="int64", perm=(1, 0))
        sketch.node(op, sketch.random("board", 4, 8), turned, sketch.input("z", None), name="found", shape=(4, 8))
        graph, exact = canonicalize(sketch.graph("found")), ["x.h", "y.h"]
    else:
        graph, exact = bins(op), ["value", "scaled"]
    plan = place(graph, target)
    for tensor in exact:
        assert "compares it for an index" in plan.floats[tensor]
        assert Tensor(tensor) not in plan.placements
