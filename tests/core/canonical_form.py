"""The canonical form of a sketched graph, with the checks that hold for every canonical graph."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from sketch import Sketch, ops

from isobit.canonical import canonicalize
from isobit.graph import Graph, Node, differences, to_canonical

BATCH_SEQ = ("N", 5, 8)
IMAGE = ("N", 3, 8, 8)


def weights_of(graph: Graph, sketch: Sketch) -> Callable[[str], np.ndarray]:
    """Canonical values of the constants of `graph`, through their layouts."""

    def read(name: str) -> np.ndarray:
        info = graph.weights[name]
        value = to_canonical(sketch.values[info.source or name], info.layout)
        assert value.shape == info.shape
        return value

    return read


def canonical(sketch: Sketch, *outputs: str) -> Graph:
    """The canonical graph, after the checks that hold for every canonical graph."""
    graph = canonicalize(sketch.graph(*outputs))
    again = canonicalize(graph)
    read, read_again = weights_of(graph, sketch), weights_of(again, sketch)
    assert differences(graph, again, read, read_again) == [], "canonicalizing again changes nothing"
    assert [(n.name, n.op, n.inputs, n.parts) for n in again.nodes] == [
        (n.name, n.op, n.inputs, n.parts) for n in graph.nodes
    ]
    assert again.tensors == graph.tensors
    for name, info in graph.weights.items():
        if info.value is not None:
            np.testing.assert_array_equal(info.value, read(name))
    produced = set(graph.inputs)
    for node in graph.nodes:  # every name is defined before it is read
        assert all(name is None or name in produced or name in graph.weights for name in node.inputs), node
        produced.update(node.outputs)
    assert set(graph.outputs.values()) <= produced | set(graph.weights)
    return graph


def only(graph: Graph) -> Node:
    assert len(graph.nodes) == 1, ops(graph)
    return graph.nodes[0]
