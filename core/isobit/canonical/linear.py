"""Gemm, MatMul by a constant, and MatMul + Add: all Linear, weight (out, in), bias (out,)."""

from __future__ import annotations

from isobit.canonical.matching import Fusion, fuse, fused, producer_of
from isobit.canonical.weight_views import Weights
from isobit.graph.graph import Graph, Node, WeightInfo
from isobit.graph.layout import TRANSPOSED, View


def to_linear(graph: Graph) -> Graph:
    """Every matrix product with a constant matrix becomes Linear; a constant vector added to it is its bias."""
    weights = Weights(graph.weights)
    nodes = tuple(_linear(graph, node, weights) for node in graph.nodes)
    graph = graph.with_nodes(nodes, weights=weights)
    return fuse(graph, _with_bias)


def _linear(graph: Graph, node: Node, weights: Weights) -> Node:
    weight = node.input(1)
    source = node.input(0)
    if weight is None or weight not in weights or source not in graph.tensors or len(graph.weights[weight].shape) != 2:
        return node
    if node.op == "Gemm":
        return _from_gemm(graph, node, weight, weights)
    if node.op == "MatMul":
        name = weights.view(weight, TRANSPOSED)
        return Node(node.name, "Linear", (source, name), node.outputs, {}, node.parts)
    return node


def _from_gemm(graph: Graph, node: Node, weight: str, weights: Weights) -> Node:
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
    name = weight if transposed else weights.view(weight, TRANSPOSED)
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


def _vector(weights: Weights, name: str, out: int) -> str:
    info = weights[name]
    return name if info.shape == (out,) else weights.view(name, (View((out,), info.shape),))
