"""A mean over all space is GlobalAveragePool; a reshape that drops its 1x1 space belongs to it."""

from __future__ import annotations

from dataclasses import replace

from isobit.canonical.matching import Fusion, fuse, fused, producer_of
from isobit.graph.graph import Graph, Node


def to_global_pooling(graph: Graph) -> Graph:
    """GlobalAveragePool in place of ReduceMean and of AveragePool over the whole plane; ``keepdims`` says its rank."""
    graph = graph.with_nodes(tuple(_global(graph, node) for node in graph.nodes))
    return fuse(graph, _flattened)


def _global(graph: Graph, node: Node) -> Node:
    source = node.input(0)
    shape = graph.tensors[source].shape if source is not None and source in graph.tensors else None
    if node.op == "GlobalAveragePool":
        return replace(node, attributes={"keepdims": 1, **node.attributes})
    if shape is None or len(shape) < 3:
        return node
    spatial = tuple(range(2, len(shape)))
    if node.op == "ReduceMean" and len(shape) >= 4 and node.attributes.get("axes") == spatial:
        keep = int(node.attributes["keepdims"])
        return Node(node.name, "GlobalAveragePool", node.inputs[:1], node.outputs, {"keepdims": keep}, node.parts)
    whole = node.attributes.get("kernel_shape") == shape[2:] and not any(node.attributes.get("pads", (1,)))
    if node.op == "AveragePool" and whole:
        return Node(node.name, "GlobalAveragePool", node.inputs[:1], node.outputs, {"keepdims": 1}, node.parts)
    return node


def _flattened(graph: Graph, last: Node) -> Fusion | None:
    if last.op != "Reshape":
        return None
    pool = producer_of(graph, last.input(0), "GlobalAveragePool")
    rank = graph.tensors[last.outputs[0]].rank
    if pool is None or rank != 2 or not pool.attributes.get("keepdims"):
        return None
    return fused(last, "GlobalAveragePool", pool.inputs, (pool, last), keepdims=0)
