"""Normalisation over the last axis written out in elementary ops: one LayerNormalization or RMSNormalization node.

Inside are means of squares, whose range over tokens is the square of the signal's: on 8 bits small ones would be lost.
"""

from __future__ import annotations

from isobit.canonical.matching import Fusion, fuse, fused, producer_of, split_operand
from isobit.graph import Graph, Node


def fuse_normalization(graph: Graph) -> Graph:
    """Mean, variance, division and the affine part of a layer norm; root mean square and scale of an RMS norm."""
    return fuse(fuse(graph, _layer_norm), _rms_norm)


def _layer_norm(graph: Graph, last: Node) -> Fusion | None:
    """``(x - mean(x)) / sqrt(var(x) + eps) * gamma + beta``, variance as mean of the squared difference."""
    affine = _affine(graph, last)
    if affine is None:
        return None
    divide, multiply, scale, shift = affine
    centered = producer_of(graph, divide.input(0), "Sub")
    root = producer_of(graph, divide.input(1), "Sqrt")
    if centered is None or root is None:
        return None
    add = producer_of(graph, root.input(0), "Add")
    operands = split_operand(graph, add) if add else None
    if add is None or operands is None:
        return None
    variance = producer_of(graph, operands[0], "ReduceMean")
    square = graph.producer(variance.input(0) or "") if variance else None
    mean = producer_of(graph, centered.input(1), "ReduceMean")
    if variance is None or square is None or mean is None or mean.input(0) != centered.input(0):
        return None
    if not (_squares(graph, square, centered.outputs[0]) and _last_axis(graph, mean) and _last_axis(graph, variance)):
        return None
    covers = (mean, centered, square, variance, add, root, divide, multiply, last)
    inputs = (centered.input(0), scale, shift)
    return fused(last, "LayerNormalization", inputs, covers, axis=-1, epsilon=operands[1])


def _rms_norm(graph: Graph, last: Node) -> Fusion | None:
    """``x / sqrt(mean(x * x) + eps) * gamma``; gamma is a constant or, as in Gemma, computed from one."""
    if last.op != "Mul" or len(last.inputs) != 2:
        return None
    for tensor, scale in (last.inputs, last.inputs[::-1]):
        inner = graph.producer(tensor or "")
        found = _over_root(graph, inner) if inner is not None else None
        if found is None or inner is None or scale is None or not _is_vector(graph, scale):
            continue
        x, epsilon, covers = found
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
        if _squares(graph, square, x):
            return x, operands[1], tuple(n for n in (square, mean, add, root, inverse) if n is not None)
    return None


def _is_vector(graph: Graph, name: str) -> bool:
    info = graph.weights.get(name) or graph.tensors[name]
    return info.shape is not None and len(info.shape) == 1


def _affine(graph: Graph, last: Node) -> tuple[Node, Node, str, str] | None:
    if last.op != "Add" or len(last.inputs) != 2:
        return None
    for tensor, shift in (last.inputs, last.inputs[::-1]):
        multiply = producer_of(graph, tensor, "Mul")
        if multiply is None or shift is None or shift not in graph.weights:
            continue
        for inner, scale in (multiply.inputs, multiply.inputs[::-1]):
            divide = producer_of(graph, inner, "Div")
            if divide is None or scale is None or scale not in graph.weights:
                continue
            if len(graph.weights[scale].shape) == 1:
                return divide, multiply, scale, shift
    return None


def _squares(graph: Graph, node: Node, tensor: str) -> bool:
    if node.op == "Mul":
        return node.inputs == (tensor, tensor)
    return node.op == "Pow" and split_operand(graph, node) == (tensor, 2.0)


def _last_axis(graph: Graph, node: Node) -> bool:
    source = node.input(0)
    rank = graph.tensors[source].rank if source is not None and source in graph.tensors else None
    last = ((-1,), (rank - 1,)) if rank is not None else ((-1,),)
    return node.attributes.get("axes") in last and bool(node.attributes.get("keepdims", 1))
