"""Constants of weighted ops in canonical layout, under the user's own names."""

from __future__ import annotations

from dataclasses import replace

from isobit.canonical.linear import view_weight
from isobit.graph import Graph, Node, WeightInfo
from isobit.layout import Layout, Permute, Take, conv_transpose_layout

_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})


def canonical_weights(graph: Graph) -> Graph:
    """ConvTranspose, stacked MatMul, one-directional recurrent weights; then each constant gets its own name back."""
    weights = dict(graph.weights)
    nodes = tuple(_viewed(graph, node, weights) for node in graph.nodes)
    return _restore_names(graph.with_nodes(nodes, weights=weights))


def _viewed(graph: Graph, node: Node, weights: dict[str, WeightInfo]) -> Node:
    layouts: dict[int, Layout] = {}
    weight = node.input(1)
    if weight is None or weight not in graph.weights or _is_done(graph, weight):
        return node
    shape = graph.weights[weight].shape
    if node.op == "ConvTranspose":
        layouts[1] = conv_transpose_layout(shape, int(node.attributes.get("group", 1)))
    elif node.op == "MatMul" and len(shape) > 2:
        last = len(shape) - 1
        layouts[1] = (Permute((*range(last - 1), last, last - 1)),)
    elif node.op in _RECURRENT and node.attributes.get("direction", "forward") != "bidirectional":
        layouts = {i: (Take(0),) for i in (1, 2, 3) if node.input(i) in graph.weights}
    if not layouts:
        return node
    inputs = list(node.inputs)
    for index, layout in layouts.items():
        name = inputs[index]
        if name is not None:
            inputs[index] = view_weight(weights, name, layout)
    return replace(node, inputs=tuple(inputs))


def _is_done(graph: Graph, weight: str) -> bool:
    """Whether the layout was applied by an earlier run of this pass."""
    return bool(graph.weights[weight].layout) and all(use.node.op != "Transpose" for use in graph.uses(weight)) and (
        graph.weights[weight].source == weight
    )


def _restore_names(graph: Graph) -> Graph:
    """A view takes its source's name when nothing reads the source itself."""
    rename: dict[str, str] = {}
    for name, info in graph.weights.items():
        source = info.source
        if source and source != name and source not in graph.weights and source not in rename.values():
            rename[name] = source
    if not rename:
        return graph
    weights = {rename.get(name, name): info for name, info in graph.weights.items()}
    nodes = tuple(
        replace(node, inputs=tuple(rename.get(name, name) if name else name for name in node.inputs))
        for node in graph.nodes
    )
    return graph.with_nodes(nodes, weights=weights)
