"""Normalisation over the last axis written out in elementary ops: one LayerNormalization or RMSNormalization node.

Inside are means of squares, whose range over tokens is the square of the signal's: on 8 bits small ones would be lost.
"""

from __future__ import annotations

from isobit.canonical.matching import Fusion, fuse, fused, producer_of, split_operand
from isobit.canonical.products import Product
from isobit.graph.graph import Graph, Node


def fuse_normalization(graph: Graph) -> Graph:
    """Mean, variance, division and the affine part of a layer norm; root mean square and scale of an RMS norm."""
    return fuse(fuse(graph, _layer_norm), _rms_norm)


def _layer_norm(graph: Graph, last: Node) -> Fusion | None:
    """``(x - mean(x)) / sqrt(var(x) + eps) * gamma + beta``, the factors in any order."""
    if last.op != "Add" or len(last.inputs) != 2:
        return None
    for tensor, shift in (last.inputs, last.inputs[::-1]):
        if tensor is None or shift is None or not _is_constant_vector(graph, shift):
            continue
        product = Product.of(graph, tensor)
        if len(product.over) != 2 or len(product.under) != 1 or product.constant != 1:
            continue
        root = producer_of(graph, product.under[0], "Sqrt")
        add = producer_of(graph, root.input(0), "Add") if root else None
        operands = split_operand(graph, add) if add else None
        variance = _variance(graph, operands[0]) if operands else None
        if root is None or add is None or operands is None or variance is None:
            continue
        for scale, name in (product.over, product.over[::-1]):
            centered = _centered(graph, name)
            if centered is not None and centered[0] == variance[0] and _is_constant_vector(graph, scale):
                covers = (*centered[1], *variance[1], add, root, *product.nodes, last)
                inputs = (variance[0], scale, shift)
                return fused(last, "LayerNormalization", inputs, covers, axis=-1, epsilon=operands[1])
    return None


def _centered(graph: Graph, name: str | None) -> tuple[str, tuple[Node, ...]] | None:
    """``x`` where `name` is ``x - mean(x)``, and the nodes of that."""
    difference = producer_of(graph, name, "Sub")
    x = difference.input(0) if difference else None
    mean = producer_of(graph, difference.input(1), "ReduceMean") if difference else None
    if difference is None or x is None or mean is None or mean.input(0) != x or not _last_axis(graph, mean):
        return None
    return x, (mean, difference)


def _variance(graph: Graph, name: str) -> tuple[str, tuple[Node, ...]] | None:
    """``x`` where `name` is its variance: ``mean((x - mean(x))²)``, or Flax's ``relu(mean(x²) - mean(x)²)``."""
    mean = producer_of(graph, name, "ReduceMean")
    if mean is not None and _last_axis(graph, mean):
        square = graph.producer(mean.input(0) or "")
        centered = _centered(graph, _squared(graph, square)) if square else None
        return (centered[0], (*centered[1], square, mean)) if centered and square else None
    positive = producer_of(graph, name, "Relu")
    difference = producer_of(graph, positive.input(0), "Sub") if positive else None
    if positive is None or difference is None:
        return None
    of_square = producer_of(graph, difference.input(0), "ReduceMean")
    squared = graph.producer(difference.input(1) or "")
    square = graph.producer(of_square.input(0) or "") if of_square else None
    mean = producer_of(graph, _squared(graph, squared), "ReduceMean") if squared else None
    x = mean.input(0) if mean else None
    if of_square is None or square is None or squared is None or mean is None or x is None:
        return None
    if _squared(graph, square) != x or not (_last_axis(graph, mean) and _last_axis(graph, of_square)):
        return None
    return x, (square, of_square, mean, squared, difference, positive)


def _rms_norm(graph: Graph, last: Node) -> Fusion | None:
    """``x / sqrt(mean(x * x) + eps) * gamma``; gamma is a constant or, as in Gemma, computed from one."""
    if last.op != "Mul" or len(last.inputs) != 2:
        return None
    for tensor, scale in (last.inputs, last.inputs[::-1]):
        inner = graph.producer(tensor or "")
        quotient = _over_root(graph, inner) if inner is not None else None
        if quotient is None or inner is None or scale is None or not _is_vector(graph, scale):
            continue
        x, epsilon, covers = quotient
        return fused(last, "RMSNormalization", (x, scale), (*covers, inner, last), axis=-1, epsilon=epsilon)
    return None


def _over_root(graph: Graph, node: Node) -> tuple[str, float, tuple[Node, ...]] | None:
    """``x`` and ``eps`` where `node` is x over its root mean square, and what it is made of."""
    if len(node.inputs) != 2:
        return None
    pairs = {"Div": [node.inputs], "Mul": [node.inputs, node.inputs[::-1]]}.get(node.op, [])
    for x, divisor in pairs:
        inverse = producer_of(graph, divisor, "Reciprocal") if node.op == "Mul" else None
        root = producer_of(graph, inverse.input(0) if inverse else divisor, "Sqrt")
        if x is None or root is None or (node.op == "Mul" and inverse is None):
            continue
        add = producer_of(graph, root.input(0), "Add")
        operands = split_operand(graph, add) if add else None
        mean = producer_of(graph, operands[0], "ReduceMean") if operands else None
        square = graph.producer(mean.input(0) or "") if mean else None
        if add is None or operands is None or mean is None or square is None or not _last_axis(graph, mean):
            continue
        if _squared(graph, square) == x:
            return x, operands[1], tuple(n for n in (square, mean, add, root, inverse) if n is not None)
    return None


def _is_vector(graph: Graph, name: str) -> bool:
    info = graph.weights.get(name) or graph.tensors[name]
    return info.shape is not None and len(info.shape) == 1


def _is_constant_vector(graph: Graph, name: str) -> bool:
    return name in graph.weights and len(graph.weights[name].shape) == 1


def _squared(graph: Graph, node: Node) -> str | None:
    """What `node` is the square of."""
    if node.op == "Mul" and node.inputs[0] == node.inputs[1]:
        return node.inputs[0]
    operands = split_operand(graph, node) if node.op == "Pow" else None
    return operands[0] if operands and operands[1] == 2.0 else None


def _last_axis(graph: Graph, node: Node) -> bool:
    source = node.input(0)
    rank = graph.tensors[source].rank if source is not None and source in graph.tensors else None
    last = ((-1,), (rank - 1,)) if rank is not None else ((-1,),)
    return node.attributes.get("axes") in last and bool(node.attributes.get("keepdims", 1))
