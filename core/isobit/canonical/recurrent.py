"""LSTM, GRU and RNN in one form: weights without the direction axis, a bias in its two halves, no state of zeros."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from isobit.canonical.matching import Fusion, fuse, fused, producer_of
from isobit.canonical.weight_views import Weights
from isobit.graph.graph import Graph, Node
from isobit.graph.layout import Layout, Take, View
from isobit.graph.ops import ACTIVATIONS, RECURRENT

_STATES = (5, 6)
_BIAS, _RECURRENT_BIAS = 3, 8

_FILLED = frozenset({"Expand", "Slice", "Reshape", "Squeeze", "Unsqueeze", "Tile", "Transpose"})


def drop_zero_states(graph: Graph) -> Graph:
    """Initial states of zeros are dropped: they are the default, and exporters compute them for the batch size."""
    nodes = tuple(_without_zero_states(graph, node) for node in graph.nodes)
    if nodes == graph.nodes:
        return graph
    before = _read(graph, graph.nodes)
    while len(still_read := _only_read(graph, nodes, before)) < len(nodes):
        nodes = still_read
    return graph.with_nodes(nodes)


def _without_zero_states(graph: Graph, node: Node) -> Node:
    if node.op not in RECURRENT or not any(_is_zero(graph, node.input(index)) for index in _STATES):
        return node
    inputs = [None if i in _STATES and _is_zero(graph, name) else name for i, name in enumerate(node.inputs)]
    while inputs[-1] is None:
        inputs.pop()
    return replace(node, inputs=tuple(inputs))


def _is_zero(graph: Graph, name: str | None) -> bool:
    if name is None:
        return False
    if name in graph.weights:
        return graph.weights[name].magnitude == 0
    node = graph.producer(name)
    if node is None:
        return False
    if node.op == "ConstantOfShape":
        return not np.any(node.attributes.get("value", 0))
    return node.op in _FILLED and _is_zero(graph, node.input(0))


def _read(graph: Graph, nodes: tuple[Node, ...]) -> set[str | None]:
    return {name for node in nodes for name in node.inputs} | set(graph.outputs.values())


def _only_read(graph: Graph, nodes: tuple[Node, ...], before: set[str | None]) -> tuple[Node, ...]:
    """Without the nodes whose results were read before, and are not now."""
    now = _read(graph, nodes)
    return tuple(n for n in nodes if not (before & set(n.outputs)) or now & set(n.outputs))


def canonical_recurrent(graph: Graph) -> Graph:
    """One-directional weights as (gates * hidden, in), the bias as two vectors; size and activations said."""
    graph = fuse(graph, _with_joined_bias)
    weights = Weights(graph.weights)
    nodes = tuple(_layer(node, weights) if node.op in RECURRENT else node for node in graph.nodes)
    return graph.with_nodes(nodes, weights=weights)


def _with_joined_bias(graph: Graph, node: Node) -> Fusion | None:
    """A bias that is put together from two constants: the two halves keep their names."""
    concat = producer_of(graph, node.input(_BIAS), "Concat") if node.op in RECURRENT else None
    if concat is None or len(concat.inputs) != 2 or any(name not in graph.weights for name in concat.inputs):
        return None
    return fused(node, node.op, _with_bias(node, *concat.inputs), (concat, node), **node.attributes)


def _with_bias(node: Node, bias: str | None, recurrent_bias: str | None) -> tuple[str | None, ...]:
    inputs = [*node.inputs, *[None] * (_RECURRENT_BIAS + 1 - len(node.inputs))]
    inputs[_BIAS], inputs[_RECURRENT_BIAS] = bias, recurrent_bias
    return tuple(inputs)


def _layer(node: Node, weights: Weights) -> Node:
    attributes = dict(node.attributes)
    recurrent = node.input(2)
    if recurrent is not None and recurrent in weights:
        attributes["hidden_size"] = weights[recurrent].shape[-1]
    if attributes["direction"] == "bidirectional":  # the backend could not split the directions
        return replace(node, attributes=attributes)
    activations = attributes.get("activations", ACTIVATIONS[node.op])
    attributes["activations"] = tuple(str(name).capitalize() for name in activations)
    bias = node.input(_BIAS)
    is_joined = bias is not None and bias in weights and len(weights[bias].shape) == 2
    if bias is not None and is_joined and node.input(_RECURRENT_BIAS) is None:
        node = replace(node, inputs=_with_bias(node, *(_half(bias, part, weights) for part in (0, 1))))
    inputs = list(node.inputs)
    for index, rank in ((1, 2), (2, 2), (_BIAS, 1), (_RECURRENT_BIAS, 1)):
        if index < len(inputs):
            inputs[index] = _flat(inputs[index], rank, weights)
    return replace(node, inputs=tuple(inputs), attributes=attributes)


def _flat(name: str | None, rank: int, weights: Weights) -> str | None:
    """The constant without the axis of the directions, where it has one."""
    if name is None or name not in weights or len(weights[name].shape) == rank:
        return name
    return weights.view(name, (Take(0),))


def _half(name: str, part: int, weights: Weights) -> str:
    size = weights[name].shape[1]
    layout: Layout = (Take(0), View((2, size // 2), (size,)), Take(part))
    return weights.view(name, layout)
