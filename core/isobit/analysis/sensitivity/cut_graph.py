"""A graph cut into a row of parts, where little is handed from one to the next."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import numpy as np

from isobit.budget.cost_model import elements, layer_costs
from isobit.graph.boundaries import alive, read_from_outside
from isobit.graph.graph import Graph, Node
from isobit.graph.sites import Input, Site


@dataclass(frozen=True, eq=False)
class Part:
    """Some nodes of a graph that follow one another, and how much of the whole graph's work they are, 0 to 1.

    `graph` has the model's inputs, and what the nodes read of other parts, as its inputs; its outputs are the tensors
    that later parts read or that leave the model, by their own names. `live` are the tensors of earlier parts, and
    inputs of the model, that this part or a later one reads.
    """

    graph: Graph
    work: float
    live: frozenset[str]
    _of: WeakKeyDictionary[Graph, Graph] = field(default_factory=WeakKeyDictionary, repr=False)

    def of(self, graph: Graph) -> Graph:
        """The same part of the graph of a copy, whose nodes are those; one graph as long as the copy's lives."""
        if graph not in self._of:
            self._of[graph] = part_of(graph, self.graph.nodes)
        return self._of[graph]

    def reads(self, site: Site) -> bool:
        """Whether a node of the part reads what is quantized at a site."""
        if isinstance(site, Input):
            return any(site.node == node.name for node in self.graph.nodes)
        return bool(self.graph.uses(site.name))


def cut_into_parts(graph: Graph, most: int) -> list[Part]:
    """At most so many parts of about the same work, in the order of execution.

    Each boundary lies where the fewest elements are handed over, within half a part around its place.
    """
    nodes = graph.nodes
    costs = layer_costs(graph)
    work = np.array([costs[node.name].macs + costs[node.name].activations for node in nodes])
    done = np.cumsum(work) / max(float(work.sum()), 1.0)
    live = alive(graph)
    handed = [sum(elements(graph, name) for name in names) for names in live]
    ends: set[int] = {len(nodes)}
    for boundary in range(1, most):
        window = [end for end in range(1, len(nodes)) if boundary - 0.5 <= done[end - 1] * most < boundary + 0.5]
        if window:
            ends.add(min(window, key=lambda end: (handed[end], abs(done[end - 1] * most - boundary))))
    parts, start = [], 0
    for end in sorted(ends):
        before = float(done[start - 1]) if start else 0.0
        parts.append(Part(part_of(graph, nodes[start:end]), float(done[end - 1]) - before, live[start]))
        start = end
    return parts


def joined(graph: Graph, parts: Sequence[Part]) -> Part:
    """Parts of a graph that follow one another as one."""
    nodes = [node for part in parts for node in part.graph.nodes]
    return Part(part_of(graph, nodes), sum(part.work for part in parts), parts[0].live)


def part_of(graph: Graph, nodes: Sequence[Node]) -> Graph:
    """These nodes of a graph as a graph of their own; it has all inputs of the model, of which sizes are taken."""
    inside = {node.name for node in nodes}
    leaving = [name for node in nodes for name in node.outputs if _leaves(graph, name, inside)]
    return graph.with_nodes(
        tuple(nodes),
        inputs=tuple(dict.fromkeys([*graph.inputs, *read_from_outside(graph, nodes)])),
        outputs={name: name for name in leaving},
        notes=(),
    )


def _leaves(graph: Graph, name: str, inside: Iterable[str]) -> bool:
    return name in graph.output_tensors or any(use.node.name not in inside for use in graph.uses(name))
