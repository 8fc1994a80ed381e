"""Which channels go together: the relations of all nodes around some axes, followed to their end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from isobit.edits.slicing.channel_relations import Fixed, Indices, Relation, Sizes, Slot, Tie
from isobit.edits.slicing.channel_rules import relations
from isobit.graph.graph import Graph
from isobit.graph.layout import Take


@dataclass(frozen=True, eq=False)
class Coupled:
    """By axis a number for each of its indices: those of one number, wherever they are, go together or not at all.

    `fixed` says by number why it stays. An axis that is not listed has nothing to do with those asked for.
    """

    numbers: Mapping[Slot, Indices]
    fixed: Mapping[int, str]


class Coupling:
    """The relations of a graph, worked out node by node as they are asked for."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.sizes = Sizes(graph)
        self._by_node: dict[str, dict[Slot, list[Relation]]] = {}

    def of(self, seeds: Iterable[Slot]) -> Coupled:
        """All axes that the seeds are tied to, directly or through others; axes of open size end it."""
        waiting = [slot for slot in dict.fromkeys(seeds) if self.sizes.size(slot) is not None]
        starts: dict[Slot, int] = {}
        total = 0
        ties: dict[int, Tie] = {}
        fixed: list[Fixed] = []
        while waiting:
            slot = waiting.pop()
            if slot in starts:
                continue
            starts[slot] = total
            total += self.sizes.size(slot) or 0
            for relation in self._around(slot):
                if isinstance(relation, Fixed):
                    fixed.append(relation)
                    continue
                other = relation.second if relation.first == slot else relation.first
                if self.sizes.size(other) is None:
                    fixed.append(Fixed(slot, f"the size of axis {other.axis} of {other.name!r} is open"))
                    continue
                ties[id(relation)] = relation
                waiting.append(other)
        return self._numbered(starts, total, ties.values(), fixed)

    def _numbered(self, starts: Mapping[Slot, int], total: int, ties: Iterable[Tie], fixed: Iterable[Fixed]) -> Coupled:
        first: list[Indices] = [np.zeros(0, np.int64)]
        second: list[Indices] = [np.zeros(0, np.int64)]
        for tie in ties:
            for side, slot, at in ((first, tie.first, tie.first_at), (second, tie.second, tie.second_at)):
                side.append(starts[slot] + (np.arange(self.sizes.size(slot) or 0) if at is None else at))
        labels = _joined(total, np.concatenate(first), np.concatenate(second))
        numbers = {slot: labels[start : start + (self.sizes.size(slot) or 0)] for slot, start in starts.items()}
        reasons: dict[int, str] = {}
        for stays in fixed:
            of_slot = numbers[stays.slot]
            for number in (of_slot if stays.at is None else of_slot[stays.at]).tolist():
                reasons.setdefault(number, stays.reason)
        return Coupled(numbers, reasons)

    def _around(self, slot: Slot) -> Iterable[Relation]:
        """What the nodes beside a tensor or constant say of one of its axes, and what it is itself."""
        graph, name = self.graph, slot.name
        if name in graph.weights:
            if len(graph.views(name)) > 1 or any(isinstance(step, Take) for step in graph.weights[name].layout):
                readers = ", ".join(sorted(graph.source_readers(name)))
                yield Fixed(slot, f"constant {name!r} is a view of an array that is shared by {readers}")
        elif name in graph.inputs:
            yield Fixed(slot, f"the channels of model input {name!r} cannot be removed")
        if name in graph.output_tensors:
            yield Fixed(slot, f"the channels of model output {name!r} cannot be removed")
        producer = graph.producer(name)
        nodes = [*([] if producer is None else [producer]), *(use.node for use in graph.uses(name))]
        for node in {node.name: node for node in nodes}.values():
            if node.name not in self._by_node:
                by_slot: dict[Slot, list[Relation]] = {}
                self._by_node[node.name] = by_slot
                for relation in relations(self.sizes, node):
                    ends = (relation.slot,) if isinstance(relation, Fixed) else {relation.first, relation.second}
                    for end in ends:
                        by_slot.setdefault(end, []).append(relation)
            yield from self._by_node[node.name].get(slot, ())


def _joined(total: int, first: Indices, second: Indices) -> Indices:
    """The smallest index that each is joined with, through any number of pairs."""
    labels = np.arange(total)
    while True:
        smaller = np.minimum(labels[first], labels[second])
        new = labels.copy()
        np.minimum.at(new, labels[first], smaller)
        np.minimum.at(new, labels[second], smaller)
        while not np.array_equal(new, new[new]):
            new = new[new]
        if np.array_equal(new, labels):
            return labels
        labels = new
