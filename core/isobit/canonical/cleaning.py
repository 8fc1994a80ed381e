"""Removing nodes that do not compute: identities, dropout, shape arithmetic, views of constants, settings as inputs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from isobit.canonical.matching import Fusion, fuse, fused, producer_of
from isobit.graph.graph import Graph, Node, WeightInfo
from isobit.graph.layout import LayoutStep, Permute, View, compose, output_shape, to_canonical
from isobit.graph.ops import SETTINGS, SHAPE_SOURCES


def drop_unread(graph: Graph) -> Graph:
    """Nodes that no output of the model needs."""
    needed = set(graph.output_tensors)
    nodes = []
    for node in reversed(graph.nodes):
        if needed.isdisjoint(node.outputs):
            continue
        needed.update(name for name in node.inputs if name is not None)
        nodes.append(node)
    return graph.with_nodes(tuple(reversed(nodes)))


def join_reshapes(graph: Graph) -> Graph:
    """A Reshape that is read by another one alone."""
    return fuse(graph, _joined)


def _joined(graph: Graph, last: Node) -> Fusion | None:
    first = producer_of(graph, last.input(0), "Reshape") if last.op == "Reshape" else None
    return fused(last, "Reshape", first.inputs[:1], (first, last), **last.attributes) if first else None


def drop_identities(graph: Graph) -> Graph:
    """Identity, inference Dropout and casts from a type to itself: their readers read the input."""
    alias: dict[str, str] = {}
    nodes = []
    for node in graph.nodes:
        node = _renamed(node, alias)
        source = node.input(0)
        if source is not None and _is_identity(graph, node, source):
            alias[node.outputs[0]] = source
        else:
            nodes.append(node)
    if not alias:
        return graph
    outputs = {name: alias.get(tensor, tensor) for name, tensor in graph.outputs.items()}
    return graph.with_nodes(tuple(nodes), outputs=outputs)


def _is_identity(graph: Graph, node: Node, source: str) -> bool:
    if any(graph.uses(extra) for extra in node.outputs[1:]):
        return False  # a Dropout whose mask is read
    if source in graph.weights and node.outputs[0] in graph.output_tensors:
        return False  # an output that is a constant needs this node's tensor
    if node.op == "Cast":
        info = graph.tensors.get(source) or graph.weights[source]
        return graph.tensors[node.outputs[0]].dtype == info.dtype
    if node.op == "Dropout":
        training = graph.value(node.input(2))
        return not np.any(node.attributes.get("training_mode", 0) if training is None else training)
    return node.op == "Identity"


def fold_constant_views(graph: Graph) -> Graph:
    """Transpose, Reshape and the like of a constant become a step of that constant's layout."""
    alias: dict[str, str] = {}
    weights = dict(graph.weights)
    nodes = []
    for node in graph.nodes:
        node = _renamed(node, alias)
        source = node.input(0)
        step = _view_step(graph, node, weights[source]) if source in weights else None
        if source is None or step is None or node.outputs[0] in graph.output_tensors:
            nodes.append(node)
            continue
        old = weights[source]
        shape = output_shape(old.shape, (step,))
        value = None if old.value is None else to_canonical(old.value, (step,))
        layout = compose(old.layout, (step,))
        viewed = replace(old, shape=shape, value=value, source=old.source or source, layout=layout)
        name = f"{source}'{len(alias)}"  # canonical_weights gives it the source's name where that is free
        alias[node.outputs[0]] = name
        weights[name] = viewed
    return graph.with_nodes(tuple(nodes), weights=weights) if alias else graph


def _view_step(graph: Graph, node: Node, info: WeightInfo) -> LayoutStep | None:
    if node.op == "Transpose":
        reverse = tuple(range(len(info.shape)))[::-1]
        return Permute(tuple(int(a) for a in node.attributes.get("perm", reverse)))
    if node.op in ("Reshape", "Flatten", "Squeeze", "Unsqueeze"):
        shape = graph.tensors[node.outputs[0]].shape
        if shape is not None and all(isinstance(n, int) for n in shape):
            return View(tuple(n for n in shape if isinstance(n, int)), info.shape)
    return None


_SCALARS = frozenset({"min", "max"})
_VECTORS = frozenset({"shape", "axes", "starts", "ends", "steps", "pads", "split", "repeats", "roi", "scales", "sizes"})


def absorb_settings(graph: Graph) -> Graph:
    """Settings given as constant inputs (axes, bounds, shapes) become attributes."""
    nodes = []
    for node in graph.nodes:
        settings = SETTINGS.get(node.op, {})
        attributes: dict[str, Any] = dict(node.attributes)
        inputs = list(node.inputs)
        for index, name in settings.items():
            value = graph.value(node.input(index))
            if value is None or (name in _SCALARS and value.size != 1):
                continue  # several limits are no setting; where no runtime takes them, running says so
            is_scalar = name in _SCALARS or (value.ndim == 0 and name not in _VECTORS)
            attributes[name] = value.item() if is_scalar else tuple(np.atleast_1d(value).tolist())
            inputs[index] = None
        while inputs and inputs[-1] is None:
            inputs.pop()
        nodes.append(replace(node, inputs=tuple(inputs), attributes=attributes))
    return graph.with_nodes(tuple(nodes))


def drop_shape_arithmetic(graph: Graph) -> Graph:
    """Nodes that only compute shapes from shapes go; what they fed is a setting that follows from the shapes.

    Where a value computed from shapes is data (looked-up positions, a mask), what computes it stays.
    """
    shapes = _shape_tensors(graph)
    if not shapes:
        return graph
    nodes = []
    needed = set(graph.output_tensors)
    for node in reversed(graph.nodes):
        if shapes.issuperset(node.outputs) and needed.isdisjoint(node.outputs):
            continue
        settings = SETTINGS.get(node.op, {})
        inputs = [None if name in shapes and i in settings else name for i, name in enumerate(node.inputs)]
        needed.update(name for name in inputs if name is not None)
        while inputs and inputs[-1] is None:
            inputs.pop()
        nodes.append(replace(node, inputs=tuple(inputs)))
    return graph.with_nodes(tuple(reversed(nodes)))


def _shape_tensors(graph: Graph) -> set[str]:
    """Tensors that follow from shapes and constants alone."""
    shapes: set[str] = set()
    for node in graph.nodes:
        data = [name for name in node.inputs if name is not None]
        all_from_shapes = all(name in shapes or name in graph.weights for name in data)
        if node.op in SHAPE_SOURCES or (all_from_shapes and any(name in shapes for name in data)):
            shapes.update(node.outputs)
    return shapes


def unify_reshapes(graph: Graph) -> Graph:
    """Flatten, Squeeze, Unsqueeze and Reshape are one op, Reshape to the output's shape (unknown dimensions -1)."""
    nodes = []
    for node in graph.nodes:
        shape = graph.tensors[node.outputs[0]].shape if node.outputs else None
        if node.op in ("Reshape", "Flatten", "Squeeze", "Unsqueeze") and shape is not None:
            target = tuple(n if isinstance(n, int) else -1 for n in shape)
            node = Node(node.name, "Reshape", node.inputs[:1], node.outputs, {"shape": target}, node.parts)
        nodes.append(node)
    return graph.with_nodes(tuple(nodes))


def _renamed(node: Node, alias: dict[str, str]) -> Node:
    if not any(name in alias for name in node.inputs):
        return node
    return replace(node, inputs=tuple(alias.get(name, name) if name else name for name in node.inputs))
