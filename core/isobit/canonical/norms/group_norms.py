"""Group norm: channels in groups by a reshape, a norm of each group, the reshape back, and one number a channel."""

from __future__ import annotations

import numpy as np

from isobit.canonical.matching import Fusion, fused, producer_of
from isobit.graph.graph import Graph, Node, Shape


def group_norm(graph: Graph, last: Node) -> Fusion | None:
    """``norm(x in groups) * scale + shift``, or without scale and shift; the last node is Add or Reshape."""
    if last.op == "Reshape":
        found = _grouped(graph, last)
        if found is None or _is_scaled(graph, last):
            return None
        x, groups, epsilon, covers = found
        return fused(last, "GroupNormalization", (x,), covers, num_groups=groups, epsilon=epsilon)
    if last.op != "Add" or len(last.inputs) != 2:
        return None
    for tensor, shift in (last.inputs, last.inputs[::-1]):
        product = producer_of(graph, tensor, "Mul")
        for inner, scale in (product.inputs, product.inputs[::-1]) if product is not None else ():
            view = producer_of(graph, inner, "Reshape")
            found = _grouped(graph, view) if view is not None else None
            if found is None or product is None or not all(_is_per_channel(graph, n, last) for n in (scale, shift)):
                continue
            x, groups, epsilon, covers = found
            inputs = (x, scale, shift)
            return fused(
                last, "GroupNormalization", inputs, (*covers, product, last), num_groups=groups, epsilon=epsilon
            )
    return None


def _is_scaled(graph: Graph, view: Node) -> bool:
    """Whether a scale and a shift follow, which the norm takes in from their end."""
    product = graph.sole_reader(view.outputs[0])
    total = graph.sole_reader(product.node.outputs[0]) if product is not None and product.node.op == "Mul" else None
    return total is not None and total.node.op == "Add" and group_norm(graph, total.node) is not None


def _is_per_channel(graph: Graph, name: str | None, last: Node) -> bool:
    shape = graph.tensors[last.outputs[0]].shape
    if name is None or name not in graph.weights or shape is None:
        return False
    constant = graph.weights[name].shape
    constant = constant[1:] if len(constant) == len(shape) and constant[0] == 1 else constant
    return constant == (shape[1], *(1,) * (len(shape) - 2))


def _grouped(graph: Graph, last: Node) -> tuple[str, int, float, tuple[Node, ...]] | None:
    """``x``, the number of groups, epsilon and the nodes where `last` puts groups of channels back in place."""
    norm = graph.producer(last.input(0) or "")
    first = producer_of(graph, norm.input(0), "Reshape") if norm is not None else None
    if norm is None or first is None or not _is_plain(graph, norm):
        return None
    x, inside, after = (_shape(graph, name) for name in (first.input(0), norm.input(0), last.outputs[0]))
    if x is None or inside is None or after is None or len(x) < 2 or not _may_be_equal(x, after):
        return None
    groups, channels = inside[1] if len(inside) > 2 else None, x[1]
    if not isinstance(groups, int) or not isinstance(channels, int) or channels % groups:
        return None
    target = first.attributes.get("shape", ())
    keeps_batch = (inside[0] is not None and inside[0] == x[0]) or (len(target) > 0 and target[0] == 0)
    if not keeps_batch:
        return None
    return first.input(0) or "", groups, float(norm.attributes["epsilon"]), (first, norm, last)


def _may_be_equal(first: Shape, second: Shape) -> bool:
    """Whether two shapes have the same rank and channels, and no sizes that differ."""
    pairs = zip(first, second, strict=False)
    differ = any(a != b for a, b in pairs if isinstance(a, int) and isinstance(b, int))
    return len(first) == len(second) and first[1] == second[1] and not differ


def _is_plain(graph: Graph, norm: Node) -> bool:
    """Whether a node normalises everything behind the groups, and does nothing else."""
    shape = _shape(graph, norm.input(0))
    if shape is None:
        return False
    if norm.op == "InstanceNormalization":
        scale, shift = (graph.value(norm.input(index)) for index in (1, 2))
        is_one = norm.input(1) is None or (scale is not None and bool(np.all(scale == 1)))
        return is_one and (norm.input(2) is None or (shift is not None and bool(np.all(shift == 0))))
    is_whole = norm.attributes.get("axis") == 2 - len(shape) and "axes" not in norm.attributes
    return norm.op == "LayerNormalization" and is_whole and len(norm.inputs) == 1


def _shape(graph: Graph, name: str | None) -> Shape | None:
    return graph.tensors[name].shape if name is not None and name in graph.tensors else None
