"""Which operations stay in float because integers gain no time there: by what surrounds them, and the target's costs.

Conversions cost as much as the kernels between them, so a chain of integer layers is not broken: a residual Add between
convolutions stays on integers. Where an operation reads or hands on floats anyway, a conversion is paid on either side
of it, and all that integers gain is the difference of the two kernels; unless that is worth a conversion, the operation
stays in float and rounds nothing. Where integers cost more than float and all its conversions, they are never used.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from isobit.graph.graph import Graph, Node
from isobit.placement.fused_chains import Chain
from isobit.targets.costs import Costs


def without_gain(
    graph: Graph,
    costs: Sequence[Costs],
    quantized: Mapping[str, Node],
    chains: Sequence[Chain],
    asked: Collection[str],
    is_tie: Callable[[Node], bool],
) -> frozenset[str]:
    """The names of `quantized` nodes that gain nothing from integers; those `asked` for run on them in any case.

    A fused chain goes with its first node. A tie moves values: it is on integers where all that surrounds it is.
    """
    measured = frozenset(costs[0].integers) if costs else frozenset()
    free = [node for name, node in quantized.items() if node.op in measured and name not in asked]
    if not free:
        return frozenset()
    parts = {chain.nodes[0].name: chain.nodes for chain in chains}
    ties = [node for node in graph.nodes if is_tie(node)]
    integer = {*quantized, *(node.name for nodes in parts.values() for node in nodes), *(node.name for node in ties)}
    for node in free:
        if _costs_more(costs, node.op, len(_operands(graph, node))):
            integer.difference_update(part.name for part in parts.get(node.name, (node,)))
    movable = [*(node for node in free if _goes_at_an_end(costs, node.op)), *ties]
    changed = True
    while changed:  # what left may be the float neighbour of another one
        left = [parts.get(node.name, (node,)) for node in movable if node.name in integer]
        left = [nodes for nodes in left if not _is_inside(graph, nodes[0], nodes[-1], integer)]
        integer.difference_update(node.name for nodes in left for node in nodes)
        changed = bool(left)
    return frozenset(node.name for node in free if node.name not in integer)


def _operands(graph: Graph, node: Node) -> list[str]:
    """The tensors that a node reads as data."""
    return [name for name in node.inputs if name is not None and name in graph.tensors and graph.is_float(name)]


def _is_inside(graph: Graph, first: Node, last: Node, integer: Collection[str]) -> bool:
    """Whether all that `first` reads is computed on integers, and integers alone read what `last` computes."""
    producers = [graph.producer(name) for name in _operands(graph, first)]
    return (
        all(producer is not None and producer.name in integer for producer in producers)
        and all(use.node.name in integer for name in last.outputs for use in graph.uses(name))
        and graph.output_tensors.isdisjoint(last.outputs)
    )


def _costs_more(costs: Sequence[Costs], op: str, operands: int) -> bool:
    """Whether an operation costs more on integers than in float with all conversions, on each processor."""
    return all(table.integers[op] >= table.floats[op] + operands * table.dequantize + table.quantize for table in costs)


def _goes_at_an_end(costs: Sequence[Costs], op: str) -> bool:
    """Whether the kernel of integers gains less than a conversion, on each processor."""
    return all(table.floats[op] - table.integers[op] < min(table.quantize, table.dequantize) for table in costs)
