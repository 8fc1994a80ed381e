"""The neutral graph: finding things in it, and leaving out what nothing names."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from sketch import Sketch

from isobit.errors import ModelError
from isobit.graph import Graph, Node, TensorInfo, WeightInfo
from isobit.graph.graph import SMALL, small_value


def diamond() -> Graph:
    sketch = Sketch()
    x = sketch.input("x", "N", 3)
    weight = sketch.random("w", 3, 3)
    bias = sketch.random("b", 3)
    left = sketch.node("Linear", x, weight, bias, name="left", shape=("N", 3))
    right = sketch.node("Linear", x, weight, name="right", shape=("N", 3))
    sketch.weight("unread", 1.0)
    return sketch.graph(sketch.node("Add", left, right, name="sum", shape=("N", 3)))


def test_finding_nodes_producers_and_readers() -> None:
    graph = diamond()
    assert graph.node("left").op == "Linear"
    assert graph.producer("sum") is graph.node("sum")
    assert graph.producer("x") is None
    assert [(use.node.name, use.index, use.role) for use in graph.uses("w")] == [
        ("left", 1, "weight"),
        ("right", 1, "weight"),
    ]
    assert [use.role for use in graph.uses("b")] == ["bias"]
    assert [use.role for use in graph.uses("left")] == ["data"]
    assert graph.uses("nothing") == ()
    with pytest.raises(ModelError, match=re.escape("no node 'lefft' in the graph (did you mean 'left'?)")):
        graph.node("lefft")


def test_what_tensors_are_computed_from() -> None:
    graph = diamond()
    assert graph.before(["sum"]) == {"left", "right", "sum"}
    assert graph.before(["left", "x", "w"]) == {"left"}
    assert graph.before([]) == graph.before(["x"]) == frozenset()


def test_a_copy_with_another_weight_has_the_readers_of_its_own() -> None:
    graph = diamond()
    assert graph.uses("w")  # looked up before
    more = graph.with_weight("w", WeightInfo.of(np.zeros((3, 4), np.float32), "w"))
    assert (more.weights["w"].shape, graph.weights["w"].shape) == ((3, 4), (3, 3))
    assert [use.node.name for use in more.uses("w")] == ["left", "right"]
    fewer = more.with_nodes(tuple(node for node in more.nodes if node.name != "right"))
    assert [use.node.name for use in fewer.uses("w")] == ["left"]
    assert all(more.is_taken(name) for name in ("w", "x", "right"))
    assert not more.is_taken("nothing")


def test_a_sole_reader_is_one_reader_of_what_stays_inside() -> None:
    graph = diamond()
    reader = graph.sole_reader("left")
    assert reader is not None
    assert (reader.node.name, reader.index) == ("sum", 0)
    assert graph.sole_reader("x") is None
    assert graph.sole_reader("sum") is None


def test_inputs_that_are_left_out_are_absent() -> None:
    node = diamond().node("right")
    assert node.input(1) == "w"
    assert node.input(2) is None


def test_what_nothing_names_is_left_out() -> None:
    graph = diamond()
    less = graph.with_nodes(graph.nodes[:1], outputs={"out": "left"})
    assert set(less.tensors) == {"x", "left"}
    assert set(less.weights) == {"w", "b"}
    assert "unread" in graph.weights


def test_a_graph_is_read_only() -> None:
    graph = diamond()
    with pytest.raises(TypeError):
        graph.tensors["x"] = graph.tensors["sum"]  # type: ignore[index]
    with pytest.raises(AttributeError):
        graph.nodes = ()  # type: ignore[misc]


def test_small_constants_carry_a_copy_of_their_value() -> None:
    array = np.zeros(SMALL)
    value = small_value(array)
    assert value is not None
    array[0] = 1
    assert not value.any()
    assert small_value(np.zeros(SMALL + 1)) is None
    assert diamond().value("b") is not None
    assert diamond().value("x") is None
    assert diamond().value(None) is None


def test_a_graph_prints_whole_and_aligned() -> None:
    sketch = Sketch()
    x = sketch.input("x", "N", 3, None)
    y = sketch.node("Gemm", x, None, sketch.random("fc.w", 2, 3), name="fc", shape=("N", 2), note="a b")
    table = np.arange(9)
    graph = sketch.graph(sketch.node("Relu", y, name="act", shape=None, table=table, pair=np.arange(2)))
    graph = replace(graph, notes=("relu is left in float",))
    assert str(graph) == "\n".join(
        [
            "inputs",
            "  x  float32[N, 3, ?]",
            "nodes",
            "  fc   Gemm  (x, -, fc.w)  -> float32[N, 2]  note=a b",
            "  act  Relu  (fc)          -> float32[...]   table=int64[9] pair=[0, 1]",
            "constants",
            "  fc.w  float32[2, 3]",
            "outputs",
            "  out0  = act",
            "notes",
            "  relu is left in float",
        ]
    )
    assert repr(graph) == "<Graph of 2 nodes: x -> out0>"


def test_a_printed_graph_names_outputs_that_are_not_called_as_their_node() -> None:
    info = TensorInfo(("N", 2))
    node = Node("split", "Split", ("x",), ("split", "split:1"), {"axis": 1})
    graph = Graph((node,), ("x",), {"y": "split:1"}, dict.fromkeys(("x", "split", "split:1"), info), {})
    assert "-> float32[N, 2], split:1: float32[N, 2]  axis=1" in str(graph)


def test_one_long_name_does_not_widen_the_others() -> None:
    sketch = Sketch()
    y = sketch.node("Relu", sketch.input("x", "N"), name="short", shape=("N",))
    lines = str(sketch.graph(sketch.node("Relu", y, name="r" * 200, shape=("N",)))).splitlines()
    short = next(line for line in lines if line.startswith("  short"))
    assert len(short) < 140
