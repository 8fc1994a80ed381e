"""What a choice of formats costs: for each group alone, and for each two between which a tensor is handed on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
from numpy.typing import NDArray

from isobit.graph.graph import Graph, Node
from isobit.graph.multiply_adds import multiply_adds, sizes_of
from isobit.placement.plan import constant_name
from isobit.search.cost_tables import CostTable, Work
from isobit.search.formats import Candidate
from isobit.search.groups import Groups

Floats = NDArray[np.float64]

_FLOAT = Candidate("float", None, None)


@dataclass(frozen=True, eq=False)
class Costs:
    """`single` has a row for each group, a column for each format; `pairs` a table for two groups, (writer, reader)."""

    single: Floats
    pairs: Mapping[tuple[int, int], Floats]
    unit: str

    def of(self, choice: Sequence[int]) -> float:
        """The cost of a format for each group."""
        total = sum(float(self.single[group, index]) for group, index in enumerate(choice))
        return total + sum(float(table[choice[a], choice[b]]) for (a, b), table in self.pairs.items())


def costs_of(groups: Groups, candidates: Sequence[Candidate], table: CostTable) -> Costs:
    """The costs of one sample."""
    graph = groups.graph
    single = np.zeros((len(groups.all), len(candidates)))
    pairs: dict[tuple[int, int], Floats] = {}
    for index, group in enumerate(groups.all):
        names = dict.fromkeys(constant_name(graph, p.site) for p in group.placements if p.kind == "weight")
        elements = sum(prod(graph.weights[name].shape) for name in names)
        single[index] += [table.weight(elements, candidate) for candidate in candidates]
    for node in graph.nodes:
        owner = groups.of_node(node)
        if owner is not None and node.name in groups.weights_only:
            work = replace(_work(graph, node, node.outputs[0]), in_float=True)
            single[owner] += [table.kernel(work, candidate, _FLOAT) for candidate in candidates]
            owner = None
        if owner is None:
            _add_float_node(groups, node, candidates, table, single)
            continue
        if groups.is_inside_chain(node):
            continue
        index, result = owner, groups.end_of_chain(node)
        work = _work(graph, node, result)
        reader = groups.of_tensor(result)
        costs = np.array([[_operation(table, work, read, written) for written in candidates] for read in candidates])
        if reader is None:
            single[index] += [_operation(table, work, candidate, _FLOAT) for candidate in candidates]
        elif reader == index:
            single[index] += np.diagonal(costs)
        else:
            pairs[index, reader] = pairs.get((index, reader), 0.0) + costs
    for name in graph.inputs:
        _add_conversion(groups, name, candidates, table, single, into=True)
    return Costs(single, pairs, table.unit)


def _operation(table: CostTable, work: Work, read: Candidate, written: Candidate) -> float:
    return table.kernel(work, read, written) + table.conversion(work.result, read, written)


def _add_float_node(
    groups: Groups, node: Node, candidates: Sequence[Candidate], table: CostTable, single: Floats
) -> None:
    """An operation in float converts what it reads, and what reads it converts what it computes."""
    for name in dict.fromkeys(node.inputs):
        if name is not None and name in groups.whole:
            _add_conversion(groups, name, candidates, table, single, into=False)
    for name in node.outputs:
        _add_conversion(groups, name, candidates, table, single, into=True)


def _add_conversion(
    groups: Groups, name: str, candidates: Sequence[Candidate], table: CostTable, single: Floats, *, into: bool
) -> None:
    index = groups.of_tensor(name)
    if index is not None:
        elements = _elements(groups.graph, name)
        pairs = ((_FLOAT, c) if into else (c, _FLOAT) for c in candidates)
        single[index] += [table.conversion(elements, source, result) for source, result in pairs]


def _work(graph: Graph, node: Node, result: str) -> Work:
    read = sum(_elements(graph, name) for name in node.inputs if name is not None and name in graph.tensors)
    tensors = [*(name for name in node.inputs if name is not None and name in graph.tensors), *node.outputs]
    largest = max((_elements(graph, name) for name in tensors), default=0)
    return Work(node.op, multiply_adds(graph, node) or 0, largest, read, _elements(graph, result))


def _elements(graph: Graph, name: str) -> int:
    """Of one sample, sizes that are open as 1."""
    return prod(sizes_of(graph, name) or [1])
