"""Constants of weighted ops in canonical layout, under the user's own names."""

from __future__ import annotations

from dataclasses import replace

from isobit.canonical.weight_views import Weights
from isobit.errors import ModelError
from isobit.graph.graph import Graph, Node
from isobit.graph.layout import Layout, Permute, compose, conv_transpose_layout, output_shape, to_canonical


def canonical_weights(graph: Graph) -> Graph:
    """ConvTranspose and stacked MatMul; then each constant gets its own name back."""
    weights = Weights(graph.weights)
    nodes = tuple(_viewed(graph, node, weights) for node in graph.nodes)
    return _restore_names(graph.with_nodes(nodes, weights=weights))


def _viewed(graph: Graph, node: Node, weights: Weights) -> Node:
    layouts: dict[int, Layout] = {}
    weight = node.input(1)
    if weight is None or weight not in graph.weights or _is_done(graph, weight):
        return node
    shape = graph.weights[weight].shape
    if node.op == "ConvTranspose":
        group = int(node.attributes.get("group", 1))
        if group < 1 or shape[0] % group:
            raise ModelError(
                f"ConvTranspose {node.name!r}: its weight {weight!r} has {shape[0]} input channels, which do not make "
                f"{group} groups: export the model again"
            )
        layouts[1] = conv_transpose_layout(shape, group)
    elif node.op == "MatMul" and len(shape) > 2:
        last = len(shape) - 1
        layouts[1] = (Permute((*range(last - 1), last, last - 1)),)
    if not layouts:
        return node
    inputs = list(node.inputs)
    for index, layout in layouts.items():
        name = inputs[index]
        if name is not None:
            inputs[index] = _canonical_view(weights, name, layout)
    return replace(node, inputs=tuple(inputs))


def _canonical_view(weights: Weights, name: str, layout: Layout) -> str:
    """The constant through `layout`, whose own layout is not empty even where nothing moves: `_is_done` looks at it."""
    old = weights[name]
    if compose(old.layout, layout):
        return weights.view(name, layout)
    shape = output_shape(old.shape, layout)
    value = None if old.value is None else to_canonical(old.value, layout)
    alias = f"{name}'"
    weights[alias] = replace(old, shape=shape, value=value, layout=(Permute(tuple(range(len(shape)))),))
    return alias


def _is_done(graph: Graph, weight: str) -> bool:
    """Whether the layout was applied by an earlier run of this pass."""
    info = graph.weights[weight]
    return bool(info.layout) and info.source == weight


def _restore_names(graph: Graph) -> Graph:
    """A view takes its source's name when nothing reads the source itself."""
    rename: dict[str, str] = {}
    given: set[str] = set()
    for name, info in sorted(graph.weights.items(), key=lambda item: len(item[1].layout)):
        source = info.source
        if source and source != name and source not in graph.weights and source not in given:
            rename[name] = source
            given.add(source)
    if not rename:
        return graph
    weights = {rename.get(name, name): info for name, info in graph.weights.items()}
    nodes = tuple(
        replace(node, inputs=tuple(rename.get(name, name) if name else name for name in node.inputs))
        for node in graph.nodes
    )
    return graph.with_nodes(nodes, weights=weights)
