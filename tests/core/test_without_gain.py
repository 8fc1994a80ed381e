"""Operations that stay in float because integers gain no time there: by their neighbours and by the target's costs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from registries import own_registry

from isobit.graph import Graph, Tensor, Weight
from isobit.placement import Plan, QuantConfig, place
from isobit.placement.coverage import Coverage
from isobit.targets import Costs, Target
from isobit.testing.networks import NetworkBuilder

TARGET = own_registry().target("onnxruntime-cpu")
REASON = "integers gain no time here on onnxruntime-cpu"


def with_costs(**integers: float) -> Target:
    """A target on which conversions take 0.3 and 0.2, and every operation takes 1 in float."""
    return replace(TARGET, costs=(Costs("a chip", 0.3, 0.2, dict.fromkeys(integers, 1.0), integers),))


def plan(graph: Graph, target: Target = TARGET, **config) -> Plan:
    return place(graph, target, QuantConfig(**config))


def residual(first: str = "Relu", last: str = "conv") -> Graph:
    """Two residual sums with Relu between convolutions, `first` before the first one, `last` behind the second."""
    b = NetworkBuilder("residual", 0)
    h = b.op(first, "first", b.conv("stem", b.input("x", 4, 6, 6), 4, 1))
    for name in ("one", "two"):
        h = b.op("Relu", f"{name}.relu", b.op("Add", f"{name}.sum", b.conv(name, h, 4, 1), h))
    h = b.conv("last", h, 4, 1) if last == "conv" else b.op(last, "last", h)
    b.output("y", h)
    return b.build().graph


def kept(found: Plan) -> set[str]:
    return {name for name, why in found.floats.items() if why == REASON}


def test_sums_between_layers_are_not_broken_out_of_their_chain() -> None:
    found = plan(residual())
    assert not kept(found)
    assert {Tensor("one.relu"), Tensor("two.relu")} <= found.placements.keys()


@pytest.mark.parametrize(("first", "last"), [("HardSwish", "conv"), ("Relu", "HardSwish")])
def test_sums_that_meet_float_stay_in_float_up_to_the_layers(first: str, last: str) -> None:
    """The float end goes on through the second sum, which reads or is read by the first; convolutions stop it."""
    found = plan(residual(first, last))
    assert kept(found) == {"one.sum", "two.sum"}
    assert {Tensor("one"), Tensor("two")} <= found.placements.keys()
    assert all(Weight(f"{name}.weight") in found.placements for name in ("stem", "one", "two"))


def test_a_move_ends_on_floats_where_what_reads_it_does() -> None:
    b = NetworkBuilder("moved", 0)
    x = b.input("x", 4, 6, 6)
    total = b.op("Add", "sum", b.conv("one", x, 4, 1), b.conv("two", x, 4, 1))
    pooled = b.op("MaxPool", "pool", total, kernel_shape=(2, 2), strides=(2, 2))
    b.output("y", b.op("HardSwish", "curve", pooled))
    assert kept(plan(b.build().graph)) == {"sum"}


@pytest.mark.parametrize(("op", "attributes"), [("AveragePool", {"kernel_shape": (2, 2)}), ("Softmax", {"axis": 1})])
def test_kernels_that_are_slower_than_float_and_its_conversions_are_left_out(op: str, attributes) -> None:
    b = NetworkBuilder("slow", 0)
    h = b.op(op, "slow", b.conv("one", b.input("x", 4, 6, 6), 4, 1), **attributes)
    b.output("y", b.conv("two", h, 4, 1))
    found = plan(b.build().graph)
    assert Tensor("slow") in found.placements  # rounded for the layer that reads it, not by its own kernel
    assert Tensor("slow") not in plan(b.build().graph, with_costs(**{op: 1.49}), exclude="two").placements
    assert not kept(found)


def test_what_decides_are_the_costs() -> None:
    inside, end = residual(), residual(last="HardSwish")
    assert kept(plan(inside, with_costs(Add=1.65))) == set()
    assert kept(plan(inside, with_costs(Add=1.75))) == {"one.sum", "two.sum"}  # 1, two dequantized operands, one result
    assert kept(plan(end, with_costs(Add=0.79))) == set()
    assert kept(plan(end, with_costs(Add=0.81))) == {"one.sum", "two.sum"}


def test_one_plan_serves_all_processors() -> None:
    """An operation that gains on one of them stays on integers."""
    fast = Costs("another chip", 0.3, 0.2, {"Add": 1.0}, {"Add": 0.1})
    target = with_costs(Add=0.9)
    assert kept(plan(residual(last="HardSwish"), replace(target, costs=(*target.costs, fast)))) == set()


def test_what_the_user_gives_a_format_runs_on_integers() -> None:
    graph = residual(last="HardSwish")
    for name in ("two.relu", "two.sum[1]"):
        found = plan(graph, overrides={name: "uint8"})
        assert "two.sum" not in kept(found), name
    assert kept(plan(graph, activations="uint16")) == set()  # costs are those of the target's own format


def test_coverage_is_that_of_the_layers() -> None:
    graph = residual("HardSwish", "HardSwish")
    assert Coverage.of(graph, plan(graph)).compute == 1
    assert Coverage.of(graph, plan(graph)).weights == 1


def test_results_of_products_are_rounded_for_integers_alone() -> None:
    b = NetworkBuilder("head", 0)
    hidden = b.linear("hidden", b.input("x", 4), 4)
    b.output("y", b.linear("logits", b.op("HardSwish", "curve", hidden), 3))
    found = plan(b.build().graph)
    assert found.floats["hidden"] == found.floats["logits"] == "Linear leaves it in float for its readers"
