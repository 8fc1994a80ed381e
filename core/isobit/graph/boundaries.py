"""What goes from some nodes of a graph to others."""

from __future__ import annotations

from collections.abc import Sequence

from isobit.graph.graph import Graph, Node


def read_from_outside(graph: Graph, nodes: Sequence[Node]) -> list[str]:
    """The tensors that these nodes read and do not make, each once, in the order in which they are read."""
    made = {name for node in nodes for name in node.outputs}
    read = (name for node in nodes for name in node.inputs if name is not None)
    return list(dict.fromkeys(name for name in read if name in graph.tensors and name not in made))


def alive(graph: Graph) -> list[frozenset[str]]:
    """The tensors that are there before each node, and after the last, and are read from there on or leave."""
    position = {node.name: index for index, node in enumerate(graph.nodes)}
    made = {name: 0 for name in graph.inputs}
    made.update((name, index + 1) for index, node in enumerate(graph.nodes) for name in node.outputs)
    last = {name: max((position[use.node.name] for use in graph.uses(name)), default=-1) for name in made}
    last.update(dict.fromkeys(graph.output_tensors & made.keys(), len(graph.nodes)))
    live: list[set[str]] = [set() for _ in range(len(graph.nodes) + 1)]
    for name, first in made.items():
        for index in range(first, last[name] + 1):
            live[index].add(name)
    return [frozenset(names) for names in live]
