"""Fusing a pattern of nodes into one: the loop that the pattern files share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isobit.graph.graph import Graph, Node


@dataclass(frozen=True, eq=False)
class Fusion:
    """`node` stands for `covers`, the nodes of the pattern; the last of them gives it its place and its outputs."""

    node: Node
    covers: tuple[Node, ...]


Matcher = Callable[[Graph, Node], Fusion | None]


def fuse(graph: Graph, match: Matcher) -> Graph:
    """Apply `match` at every node, the pattern's last, until nothing is left to fuse.

    A pattern whose inner tensors have outside readers is kept.
    """
    while (after := _fuse_once(graph, match)) is not graph:
        graph = after
    return graph


def _fuse_once(graph: Graph, match: Matcher) -> Graph:
    replaced: dict[str, Node | None] = {}
    for node in graph.nodes:
        if node.name in replaced:
            continue
        fusion = match(graph, node)
        if fusion is None or not _is_closed(graph, fusion, node):
            continue
        if any(covered.name in replaced for covered in fusion.covers):
            continue
        replaced.update({covered.name: None for covered in fusion.covers})
        replaced[node.name] = fusion.node
    if not replaced:
        return graph
    nodes = (replaced.get(node.name, node) for node in graph.nodes)
    return graph.with_nodes(tuple(node for node in nodes if node is not None))


def fused(last: Node, op: str, inputs: Iterable[str | None], covers: Iterable[Node], **attributes: object) -> Fusion:
    """A fusion that keeps the name and outputs of the pattern's last node and covers every native part."""
    covered = tuple(dict.fromkeys(covers))
    parts = tuple(part for node in covered for part in node.parts)
    return Fusion(Node(last.name, op, tuple(inputs), last.outputs, attributes, parts), covered)


def _is_closed(graph: Graph, fusion: Fusion, last: Node) -> bool:
    names = {node.name for node in fusion.covers}
    inner = [node for node in fusion.covers if node.name != last.name]
    return all(
        tensor not in graph.output_tensors and all(use.node.name in names for use in graph.uses(tensor))
        for node in inner
        for tensor in node.outputs
    )


def producer_of(graph: Graph, name: str | None, op: str) -> Node | None:
    """The producer of `name` if it is an `op`."""
    node = graph.producer(name) if name is not None else None
    return node if node is not None and node.op == op else None


def scalar(graph: Graph, name: str | None) -> float | None:
    """The value of a real constant of one element, or None."""
    value: NDArray[np.float64] | None = graph.value(name)
    is_number = value is not None and value.size == 1 and not np.iscomplexobj(value)
    return float(value.reshape(-1)[0]) if value is not None and is_number else None


def close(a: float | None, b: float) -> bool:
    """Equal up to float16 precision: exporters write pattern constants in many precisions."""
    return a is not None and abs(a - b) <= 1e-3 * abs(b)


def split_operand(graph: Graph, node: Node) -> tuple[str, float] | None:
    """The (tensor, constant) operands of a binary node that has one of each, in either order."""
    if len(node.inputs) != 2:
        return None
    left, right = node.inputs
    for tensor, constant in ((left, right), (right, left)):
        value = scalar(graph, constant)
        if value is not None and tensor is not None and tensor in graph.tensors:
            return tensor, value
    return None
