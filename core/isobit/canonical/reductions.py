"""Means and softmax written out in sums, maxima and reshapes: one node each."""

from __future__ import annotations

from isobit.canonical.matching import Fusion, fuse, fused, producer_of, scalar
from isobit.graph.graph import Graph, Node, Shape

_REDUCTIONS = frozenset({"ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin"})


def fuse_reductions(graph: Graph) -> Graph:
    """ReduceMean for a sum over the number of its terms, Softmax for its three steps; reduced axes that come back stay.

    Attributes must have been normalized.
    """
    for match in (_keeping_axes, _mean, _keeping_axes, _softmax):
        graph = fuse(graph, match)
    return graph


def _shape(graph: Graph, name: str | None) -> Shape | None:
    return graph.tensors[name].shape if name is not None and name in graph.tensors else None


def _keeping_axes(graph: Graph, last: Node) -> Fusion | None:
    """A reshape that puts the reduced axes back, of size 1, is ``keepdims``."""
    reduction = graph.producer(last.input(0) or "") if last.op in ("Reshape", "Unsqueeze") else None
    if reduction is None or reduction.op not in _REDUCTIONS or reduction.attributes.get("keepdims", 1):
        return None
    before, after = _shape(graph, reduction.input(0)), _shape(graph, last.outputs[0])
    axes = reduction.attributes.get("axes", ())
    if before is None or after != tuple(1 if axis in axes else n for axis, n in enumerate(before)):
        return None
    attributes = {**reduction.attributes, "keepdims": 1}
    return fused(last, reduction.op, reduction.inputs, (reduction, last), **attributes)


def _mean(graph: Graph, last: Node) -> Fusion | None:
    total = producer_of(graph, last.input(0), "ReduceSum") if last.op == "Div" else None
    shape = _shape(graph, total.input(0)) if total else None
    if total is None or shape is None:
        return None
    terms = 1
    for axis in total.attributes["axes"]:
        size = shape[axis]
        if not isinstance(size, int):
            return None
        terms *= size
    if scalar(graph, last.input(1)) != terms:
        return None
    return fused(last, "ReduceMean", total.inputs, (total, last), **total.attributes)


def _softmax(graph: Graph, last: Node) -> Fusion | None:
    """``exp(x - max(x)) / sum(exp(x - max(x)))``."""
    total = producer_of(graph, last.input(1), "ReduceSum") if last.op == "Div" else None
    raised = producer_of(graph, last.input(0), "Exp")
    if total is None or raised is None or total.input(0) != last.input(0):
        return None
    shifted = producer_of(graph, raised.input(0), "Sub")
    largest = producer_of(graph, shifted.input(1), "ReduceMax") if shifted else None
    if shifted is None or largest is None or largest.input(0) != shifted.input(0):
        return None
    axes, shape = total.attributes["axes"], _shape(graph, shifted.input(0))
    same_axes = all(node.attributes.get("keepdims") and node.attributes["axes"] == axes for node in (total, largest))
    if not same_axes or len(axes) != 1 or shape is None:
        return None
    covers = (largest, shifted, raised, total, last)
    return fused(last, "Softmax", (shifted.input(0),), covers, axis=axes[0] - len(shape))
