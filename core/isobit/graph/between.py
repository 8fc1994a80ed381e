"""A part of a graph, as a graph of its own: what computes some tensors from others."""

from __future__ import annotations

from collections.abc import Sequence

from isobit.errors import ModelError
from isobit.graph.graph import Graph


def between(graph: Graph, given: Sequence[str], wanted: Sequence[str]) -> Graph:
    """The nodes that compute the tensors `wanted` from the tensors `given`; names stay.

    Its inputs are `given`, as far as something reads them, and its outputs `wanted`. Raises ModelError where more is
    needed than what is given.
    """
    start, needed, waiting = set(given), set[str](), list(wanted)
    while waiting:
        name = waiting.pop()
        if name in start or name in graph.weights:
            continue
        node = graph.producer(name)
        if node is None:
            raise ModelError(
                f"{', '.join(wanted)} cannot be computed from {', '.join(given)} alone: {name!r} is missing"
            )
        if node.name not in needed:
            needed.add(node.name)
            waiting += [read for read in node.inputs if read is not None]
    nodes = tuple(node for node in graph.nodes if node.name in needed)
    read = {name for node in nodes for name in node.inputs} | set(wanted)
    inputs = tuple(name for name in dict.fromkeys(given) if name in read)
    return graph.with_nodes(nodes, inputs=inputs, outputs={name: name for name in wanted}, notes=())
