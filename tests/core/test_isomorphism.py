"""Graphs compared by structure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from sketch import Sketch

from isobit.graph import Graph, Node, differences
from isobit.graph.isomorphism import correspondence


def network(
    rename: Callable[[str], str] = str, seed: int = 0, **changes: object
) -> tuple[Graph, dict[str, np.ndarray]]:
    """conv(x) - relu(conv(x)), flattened, with an attribute of each kind."""
    sketch = Sketch(seed)
    x = sketch.input(rename("x"), "N", 3, 8, 8)
    weight = sketch.random(rename("w"), 3, 3, 1, 1)
    if "weight" in changes:
        sketch.values[weight][0, 0] += changes["weight"]
    shape = ("N", 3, 8, 8)
    conv = sketch.node(
        "Conv", x, weight, name=rename("conv"), shape=shape, group=changes.get("group", 1), pads=(0, 0, 0, 0), mode="a"
    )
    relu = sketch.node("LeakyRelu", conv, name=rename("relu"), shape=shape, alpha=changes.get("alpha", 0.1))
    operands = (relu, conv) if changes.get("swap") else (conv, relu)
    last = sketch.node("Sub", *operands, name=rename("sub"), shape=shape)
    return sketch.graph(*((last, relu) if changes.get("outputs") else (last,))), sketch.values


def compare(a: tuple[Graph, dict[str, np.ndarray]], b: tuple[Graph, dict[str, np.ndarray]]) -> list[str]:
    return differences(a[0], b[0], a[1].__getitem__, b[1].__getitem__)


def test_names_do_not_count() -> None:
    assert compare(network(), network(lambda name: f"other/{name}")) == []


def test_neither_do_the_ways_to_write_an_attribute() -> None:
    graph, values = network()
    conv = graph.node("conv")
    written = replace(conv, attributes={"mode": "a", "pads": [0, 0, np.int64(0), 0], "group": 1.0})
    nodes = tuple(written if node is conv else node for node in graph.nodes)
    assert compare((graph.with_nodes(nodes), values), network()) == []
    assert compare(network(alpha=0.1), network(alpha=float(np.float32(0.1)))) == []


def test_nor_an_input_left_out_at_the_end() -> None:
    graph, values = network()
    nodes = tuple(replace(node, inputs=(*node.inputs, None)) for node in graph.nodes)
    assert compare((graph.with_nodes(nodes), values), network()) == []


@pytest.mark.parametrize(
    "changes",
    [{"alpha": 0.2}, {"alpha": 0.1 + 1e-7}, {"group": 3}, {"swap": True}, {"weight": 1e-6}, {"outputs": True}],
)
def test_everything_else_does(changes: dict[str, object]) -> None:
    assert compare(network(), network(**changes)) != []
    assert compare(network(**changes), network()) != []


def test_the_first_difference_is_named() -> None:
    problems = compare(network(), network(alpha=0.2))
    assert problems[0].startswith("LeakyRelu(relu: conv) {'alpha': 0.1} is in one graph only")
    assert "{'alpha': 0.2}" in problems[1]
    assert len(problems) == 2


def test_other_inputs_and_outputs_are_named() -> None:
    graph, values = network()
    assert compare((replace(graph, inputs=("x", "y")), values), network())[0] == "2 inputs against 1"
    swapped = replace(graph, outputs={"out0": "relu"})
    assert compare((swapped, values), network()) == ["the outputs are other tensors"]


def test_tensors_that_correspond() -> None:
    a, b = network(), network(lambda name: name.upper())
    matched = correspondence(a[0], b[0], a[1].__getitem__, b[1].__getitem__)
    assert matched == {"x": "X", "conv": "CONV", "relu": "RELU", "sub": "SUB"}
    changed = network(lambda name: name.upper(), alpha=0.2)
    assert correspondence(a[0], changed[0], a[1].__getitem__, changed[1].__getitem__) == {"x": "X", "conv": "CONV"}


def test_tensors_that_compute_the_same_correspond_in_order() -> None:
    sketch = Sketch()
    x = sketch.input("x", "N", 3)
    equal_nodes = [sketch.node("Relu", x, name=name, shape=("N", 3)) for name in ("first", "second")]
    graph = sketch.graph(*equal_nodes)
    sketch2 = Sketch()
    y = sketch2.input("y", "N", 3)
    graph2 = sketch2.graph(*(sketch2.node("Relu", y, name=name, shape=("N", 3)) for name in ("a", "b")))
    matched = correspondence(graph, graph2, sketch.values.__getitem__, sketch2.values.__getitem__)
    assert matched == {"x": "y", "first": "a", "second": "b"}


def test_a_second_output_is_not_the_first() -> None:
    def split(index: int) -> tuple[Graph, dict[str, np.ndarray]]:
        sketch = Sketch()
        x = sketch.input("x", "N", 4)
        graph = sketch.graph(sketch.node("Split", x, name="s", shape=("N", 2), axis=1))
        info = graph.tensors["s"]
        node = Node("s", "Split", (x,), ("s", "s:1"), {"axis": 1})
        tensors = {**graph.tensors, "s": info, "s:1": info}
        return replace(graph, nodes=(node,), tensors=tensors, outputs={"out": node.outputs[index]}), {}

    assert compare(split(0), split(0)) == []
    assert compare(split(0), split(1)) == ["the outputs are other tensors"]
