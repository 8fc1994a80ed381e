"""Pairs of weighted layers with nothing between them that a positive factor a channel could not pass through."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from isobit.graph.graph import Graph, Node
from isobit.techniques.layers.weighted_layer import LAYERS, bias_obstacle, channel_axis, weight_obstacle

#: f(s * x) = s * f(x) for every positive s, channel by channel.
HOMOGENEOUS = frozenset(
    {"Relu", "PRelu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Dropout"}
)
FLATTENING = frozenset({"Reshape", "Flatten"})


@dataclass(frozen=True, eq=False)
class Pair:
    """`second` reads what `first` computes, through the nodes `between` alone, channel by channel."""

    first: Node
    between: tuple[Node, ...]
    second: Node

    @property
    def tensor(self) -> str:
        """The output of `first`."""
        return self.first.outputs[0]


def find_pairs(graph: Graph, passable: frozenset[str] = frozenset()) -> tuple[list[Pair], Mapping[str, str]]:
    """All pairs in execution order, and why other layers have none. `passable` names further nodes to look through."""
    pairs: list[Pair] = []
    left: dict[str, str] = {}
    for node in graph.nodes:
        if node.op not in LAYERS:
            continue
        partner = _partner(graph, node, passable)
        if isinstance(partner, Pair):
            pairs.append(partner)
        else:
            left[node.name] = partner
    return pairs, left


def _partner(graph: Graph, first: Node, passable: frozenset[str]) -> Pair | str:
    obstacle = weight_obstacle(graph, first) or bias_obstacle(graph, first)
    if obstacle:
        return obstacle
    between: list[Node] = []
    tensor, axis = first.outputs[0], channel_axis(graph, first)
    while True:
        use = graph.sole_reader(tensor)
        if use is None:
            return "its output leaves the model or has several readers"
        node = use.node
        if use.index != 0:
            return f"{node.name} ({node.op}) reads it beside another tensor"
        if node.op in LAYERS:
            return _checked(graph, Pair(first, tuple(between), node), tensor, axis)
        if node.op in FLATTENING:
            if not keeps_channels(graph, node, axis):
                return f"{node.name} mixes space into the channels"
        elif node.op not in HOMOGENEOUS and node.name not in passable:
            return f"{node.name} ({node.op}) follows, which does not pass factors on"
        between.append(node)
        tensor = node.outputs[0]


def _checked(graph: Graph, pair: Pair, tensor: str, axis: int) -> Pair | str:
    obstacle = weight_obstacle(graph, pair.second) or bias_obstacle(graph, pair.second)
    if obstacle:
        return obstacle
    rank = graph.tensors[tensor].rank
    read_axis = (rank or 0) - 1 if pair.second.op == "Linear" else 1
    if rank is None or read_axis != axis:
        return f"{pair.second.name} reads along another axis"
    return pair


def keeps_channels(graph: Graph, node: Node, axis: int) -> bool:
    """Whether a reshape of (batch, C, 1, 1) to (batch, C): the channels stay on axis 1."""
    shape_before, shape_after = (graph.tensors[name].shape for name in (node.inputs[0] or "", node.outputs[0]))
    if shape_before is None or shape_after is None or axis != 1 or len(shape_after) < 2:
        return False
    return shape_before[1] == shape_after[1] and all(size == 1 for size in (*shape_before[2:], *shape_after[2:]))
