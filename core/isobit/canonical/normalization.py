"""Layer normalisation written out in elementary ops is one LayerNormalization node."""

from __future__ import annotations

from isobit.canonical.matching import Fusion, fuse, fused, producer_of, split_operand
from isobit.graph import Graph, Node


def fuse_normalization(graph: Graph) -> Graph:
    """Mean, variance, division and the affine part of a layer norm over the last axis."""
    return fuse(graph, _layer_norm)


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
