"""What is an adapter by the graph alone, and what only looks like one."""

from __future__ import annotations

import numpy as np
import pytest

from isobit.graph import Graph, Node, TensorInfo, WeightInfo, adapter_of, find_adapters
from isobit.placement import QuantConfig, place
from isobit.plugins import registry

RNG = np.random.default_rng(0)


def weight(name: str, *shape: int) -> WeightInfo:
    return WeightInfo.of(RNG.normal(size=shape).astype(np.float32), name)


def graph(*, bias: bool = False, between: str | None = None, other: bool = False, factor: int | None = 1) -> Graph:
    """A layer of 16 to 12 channels and an adapter of rank 3 beside it; what follows is read by a Relu."""
    weights = {"base.w": weight("base.w", 12, 16), "down.w": weight("down.w", 3, 16), "up.w": weight("up.w", 12, 3)}
    nodes = [Node("base", "Linear", ("x", "base.w"), ("base",))]
    down = ["y" if other else "x", "down.w"]
    if bias:
        weights["down.b"] = weight("down.b", 3)
        down.append("down.b")
    nodes.append(Node("down", "Linear", tuple(down), ("down",)))
    last = "down"
    if between:
        nodes.append(Node("between", between, ("down",), ("between",)))
        last = "between"
    nodes.append(Node("up", "Linear", (last, "up.w"), ("up",)))
    last = "up"
    if factor is not None:
        weights["factor"] = weight("factor", *(() if factor == 1 else (factor,)))
        nodes.append(Node("scaled", "Mul", ("up", "factor"), ("scaled",)))
        last = "scaled"
    nodes += [Node("sum", "Add", (last, "base"), ("sum",)), Node("relu", "Relu", ("sum",), ("relu",))]
    sizes = {"x": 16, "y": 16, "down": 3, "between": 3}
    names = ["x", "y", *(node.name for node in nodes)]
    tensors = {name: TensorInfo(("batch", sizes.get(name, 12)), channel_axis=1) for name in names}
    return Graph(tuple(nodes), ("x", "y"), {"out": "relu"}, tensors, weights)


@pytest.mark.parametrize("factor", [None, 1])
def test_an_adapter_is_found_and_stays_in_float(factor: int | None) -> None:
    built = graph(factor=factor)
    (adapter,) = find_adapters(built)
    assert (adapter.base.name, adapter.down.name, adapter.up.name, adapter.join.name) == ("base", "down", "up", "sum")
    assert [scale.name for scale in adapter.scales] == ([] if factor is None else ["scaled"])
    parts = [node.name for node in built.nodes if adapter_of(built, node) is not None]
    assert parts == ["down", "up"]
    plan = place(built, registry().target("default"))
    assert [str(placement.site) for placement in plan.of_kind("weight")] == ["base.w"]
    assert plan.floats["up"] == "the adapter beside base stays in float"
    quantized = {placement.tensor for placement in plan.of_kind("activation")}
    assert quantized == {"x", "base", "sum", "relu"}


@pytest.mark.parametrize(
    "settings",
    [{"bias": True}, {"between": "Relu"}, {"other": True}, {"factor": 12}],
    ids=["a bias", "an activation between", "another input", "a factor a channel"],
)
def test_what_could_not_be_one_layer_is_none(settings: dict[str, object]) -> None:
    built = graph(**settings)
    assert find_adapters(built) == []
    assert all(adapter_of(built, node) is None for node in built.nodes)
    assert len(place(built, registry().target("default")).of_kind("weight")) == 3


def test_heads_may_have_axes_of_their_own() -> None:
    """As the layers of Keras' attention project: the second layer works on each head."""
    heads = {"heads": 2, "size": 6}
    weights = {"base.w": weight("base.w", 12, 16), "down.w": weight("down.w", 6, 16), "up.w": weight("up.w", 6, 3)}
    nodes = (
        Node("base", "Linear", ("x", "base.w"), ("base",)),
        Node("base.heads", "Reshape", ("base",), ("base.heads",), {"shape": (0, 0, 2, 6)}),
        Node("down", "Linear", ("x", "down.w"), ("down",)),
        Node("down.heads", "Reshape", ("down",), ("down.heads",), {"shape": (0, 0, 2, 3)}),
        Node("up", "Linear", ("down.heads", "up.w"), ("up",)),
        Node("sum", "Add", ("base.heads", "up"), ("sum",)),
        Node("relu", "Relu", ("sum",), ("relu",)),
    )
    shapes = {"x": (16,), "base": (12,), "down": (6,), "down.heads": (heads["heads"], 3)}
    tensors = {
        name: TensorInfo(("batch", 5, *shapes.get(name, (heads["heads"], heads["size"]))), channel_axis=-1)
        for name in ("x", *(node.name for node in nodes))
    }
    built = Graph(nodes, ("x",), {"out": "relu"}, tensors, weights)
    (adapter,) = find_adapters(built)
    assert (adapter.base.name, adapter.down.name, adapter.up.name, adapter.join.name) == ("base", "down", "up", "sum")
    assert [node.name for node in adapter.views] == ["down.heads"]
    assert [node.name for node in built.nodes if adapter_of(built, node) is not None] == ["down", "up"]
    plan = place(built, registry().target("default"))
    assert [str(placement.site) for placement in plan.of_kind("weight")] == ["base.w"]
    assert plan.floats["down.heads"] == "the adapter beside base stays in float"


def test_a_table_has_a_smaller_one_beside_it() -> None:
    weights = {"base.w": weight("base.w", 20, 12), "down.w": weight("down.w", 20, 3), "up.w": weight("up.w", 12, 3)}
    nodes = (
        Node("base", "Gather", ("base.w", "ids"), ("base",), {"axis": 0}),
        Node("down", "Gather", ("down.w", "ids"), ("down",), {"axis": 0}),
        Node("up", "Linear", ("down", "up.w"), ("up",)),
        Node("sum", "Add", ("base", "up"), ("sum",)),
        Node("relu", "Relu", ("sum",), ("relu",)),
    )
    tensors = {name: TensorInfo(("batch", 5, 12), channel_axis=2) for name in ("base", "up", "sum", "relu")}
    tensors |= {"ids": TensorInfo(("batch", 5), "int64"), "down": TensorInfo(("batch", 5, 3), channel_axis=2)}
    built = Graph(nodes, ("ids",), {"out": "relu"}, tensors, weights)
    (adapter,) = find_adapters(built)
    assert adapter.weights == ("down.w", "up.w")
    plan = place(built, registry().target("default"))
    assert [str(placement.site) for placement in plan.of_kind("weight")] == ["base.w"]
    assert plan.floats["down.w"] == "Gather down stays in float"
    plan = place(built, registry().target("default"), QuantConfig(overrides={"down.w": "int8", "up.w": "int8"}))
    assert {str(site) for site in plan.placements} >= {"base.w", "down.w", "up.w"}
    assert plan.notes == ()


def test_the_plan_says_what_stays_in_float_beside_layers() -> None:
    (note,) = place(graph(), registry().target("default")).notes
    assert "the adapter beside 1 layer stays in float" in note
    assert place(graph(bias=True), registry().target("default")).notes == ()


def test_long_sums_are_looked_through_in_a_moment() -> None:
    """A sum of a tensor with itself, again and again, and residuals of two layers: neither is an adapter."""
    weights = {"base.w": weight("base.w", 8, 8), "down.w": weight("down.w", 3, 8), "up.w": weight("up.w", 8, 3)}
    nodes = [Node("base", "Linear", ("x", "base.w"), ("0",))]
    nodes += [Node(f"twice{i}", "Add", (f"{i}", f"{i}"), (f"{i + 1}",)) for i in range(40)]
    last = "40"
    for i in range(1500):
        down, up, both = f"down{i}", f"up{i}", f"sum{i}"
        nodes += [
            Node(down, "Linear", (last, "down.w"), (down,)),
            Node(up, "Linear", (down, "up.w"), (up,)),
            Node(both, "Add", (last, up), (both,)),
        ]
        last = both
    names = ["x", *(name for node in nodes for name in node.outputs)]
    tensors = {name: TensorInfo(("batch", 3 if "down" in name else 8), channel_axis=1) for name in names}
    assert find_adapters(Graph(tuple(nodes), ("x",), {"out": last}, tensors, weights)) == []
