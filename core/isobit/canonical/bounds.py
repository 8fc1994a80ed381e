"""Limits written as Max and Min with a number: Clip and Relu."""

from __future__ import annotations

from isobit.canonical.matching import Fusion, fuse, fused, split_operand
from isobit.graph.graph import Graph, Node


def fuse_bounds(graph: Graph) -> Graph:
    """``min(max(x, low), high)`` is Clip, ``max(x, 0)`` is Relu."""
    return fuse(fuse(graph, _clip), _relu)


def _clip(graph: Graph, last: Node) -> Fusion | None:
    upper = split_operand(graph, last) if last.op == "Min" else None
    inner = graph.producer(upper[0]) if upper else None
    lower = split_operand(graph, inner) if inner is not None and inner.op == "Max" else None
    if upper is None or inner is None or lower is None:
        return None
    return fused(last, "Clip", (lower[0],), (inner, last), min=lower[1], max=upper[1])


def _relu(graph: Graph, last: Node) -> Fusion | None:
    operands = split_operand(graph, last) if last.op == "Max" else None
    return fused(last, "Relu", (operands[0],), (last,)) if operands and operands[1] == 0 else None
