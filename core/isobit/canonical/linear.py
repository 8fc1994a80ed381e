"""Gemm, MatMul by a constant, and MatMul + Add: all Linear, weight (out, in), bias (out,)."""

from __future__ import annotations

from dataclasses import replace

from isobit.canonical.matching import Fusion, fuse, fused, producer_of
from isobit.graph.graph import Graph, Node, WeightInfo
from isobit.graph.layout import TRANSPOSED, Layout, View, compose, output_shape, to_canonical


def to_linear(graph: Graph) -> Graph:
    """Every matrix product with a constant matrix becomes Linear; a constant vector added to it is its bias."""
    weights = dict(graph.weights)
    nodes = tuple(_linear(graph, node, weights) for node in graph.nodes)
    graph = graph.with_nodes(nodes, weights=weights)
    return fuse(graph, _with_bias)


def _linear(graph: Graph, node: Node, weights: dict[str, WeightInfo]) -> Node:
    weight = node.input(1)
    source = node.input(0)
    if weight not in weights or source not in graph.tensors or len(graph.weights[weight].shape) != 2:
        return node
    if node.op == "Gemm":
        return _from_gemm(graph, node, weight, weights)
    if node.op == "MatMul":
        name = view_weight(weights, weight, TRANSPOSED)
        return Node(node.name, "Linear", (source, name), node.outputs, {}, node.parts)
    return node


def _from_gemm(graph: Graph, node: Node, weight: str, weights: dict[str, WeightInfo]) -> Node:
    attributes = node.attributes
    unscaled = attributes.get("alpha", 1.0) == 1 and not attributes.get("transA", 0)
    transposed = bool(attributes.get("transB", 0))
    out = graph.weights[weight].shape[0 if transposed else 1]
    bias = node.input(2)
    if bias is not None:
        unscaled = unscaled and attributes.get("beta", 1.0) == 1
        unscaled = unscaled and bias in graph.weights and _is_bias(graph.weights[bias], out)
    if not unscaled:
        return node
    name = weight if transposed else view_weight(weights, weight, TRANSPOSED)
    inputs = [node.inputs[0], name]
    if bias is not None:
        inputs.append(_vector(weights, bias, out))
    return Node(node.name, "Linear", tuple(inputs), node.outputs, {}, node.parts)


def _with_bias(graph: Graph, node: Node) -> Fusion | None:
    """Linear without a bias, then Add of a constant vector."""
    if node.op != "Add":
        return None
    for tensor, bias in (node.inputs, node.inputs[::-1]):
        linear = producer_of(graph, tensor, "Linear")
        if linear is None or linear.input(2) is not None or bias is None or bias not in graph.weights:
            continue
        weight = linear.inputs[1]
        info = graph.weights[bias]
        if weight is not None and info.shape == (graph.weights[weight].shape[0],):
            return fused(node, "Linear", (*linear.inputs[:2], bias), (linear, node))
    return None


def _is_bias(info: WeightInfo, out: int) -> bool:
    return info.shape in ((out,), (1, out))


def _vector(weights: dict[str, WeightInfo], name: str, out: int) -> str:
    info = weights[name]
    return name if info.shape == (out,) else view_weight(weights, name, (View((out,), info.shape),))


def view_weight(weights: dict[str, WeightInfo], name: str, layout: Layout) -> str:
    """Register the constant `name` seen through `layout`; the new name is the old one where no other use needs that.

    A constant already turned to this layout by another reader is shared.
    """
    old = weights[name]
    source, steps = old.source or name, compose(old.layout, layout)
    for name_so_far, info in weights.items():
        if (info.source or name_so_far) == source and info.layout == steps:
            return name_so_far
    shape = output_shape(old.shape, layout)
    viewed = replace(old, shape=shape, source=source, layout=steps)
    if old.value is not None:  # a view of a part may have a smaller magnitude than the whole
        value = to_canonical(old.value, layout)
        viewed = replace(viewed, value=value, magnitude=WeightInfo.of(value, name).magnitude)
    alias = f"{name}'"
    while alias in weights:
        alias += "'"
    weights[alias] = viewed
    return alias
