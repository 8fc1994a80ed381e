"""What layers cost with fewer channels, from shapes alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from isobit.budget import Cost, layer_costs
from isobit.edits.slicing.channel_relations import Indices, Sizes, Slot
from isobit.edits.slicing.counted_channels import changed_attributes
from isobit.graph.graph import Graph
from isobit.targets.costs import Costs
from isobit.techniques.pruning.channel_groups import ChannelGroup, kept_of


def group_cost(graph: Graph, group: ChannelGroup, channels: range, table: Costs | None = None) -> Cost:
    """The cost of all nodes of the group together with these of its channels, all others as they are."""
    return _cost(graph, [(group, channels)], group.nodes, table)


def network_cost(
    graph: Graph, groups: Sequence[tuple[ChannelGroup, Sequence[int]]], table: Costs | None = None
) -> Cost:
    """The cost of the whole network with these channels of these groups, all of the others."""
    return _cost(graph, groups, [node.name for node in graph.nodes], table)


def _cost(
    graph: Graph, groups: Iterable[tuple[ChannelGroup, Sequence[int]]], names: Iterable[str], table: Costs | None
) -> Cost:
    sizes, kept = Sizes(graph), kept_of(groups)

    def left(slot: Slot) -> Indices:
        return kept[slot] if slot in kept else np.arange(sizes.size(slot) or 0)

    tensors, weights = dict(graph.tensors), dict(graph.weights)
    for slot, stays in kept.items():
        if slot.name in weights:
            fixed = list(weights[slot.name].shape)
            fixed[slot.axis] = len(stays)
            weights[slot.name] = replace(weights[slot.name], shape=tuple(fixed))
        else:
            shape = list(tensors[slot.name].shape or ())
            shape[slot.axis] = len(stays)
            tensors[slot.name] = replace(tensors[slot.name], shape=tuple(shape))
    nodes = [graph.node(name) for name in names]
    changed = [
        node if (new := changed_attributes(sizes, node, left)) is None else replace(node, attributes=new)
        for node in nodes
    ]
    return Cost.sum(layer_costs(replace(graph, nodes=tuple(changed), tensors=tensors, weights=weights), table).values())
