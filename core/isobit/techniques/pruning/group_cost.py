"""What the layers of a group cost with fewer channels, from shapes alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from isobit.budget import Cost, layer_costs
from isobit.edits.slicing.channel_relations import Indices, Sizes, Slot
from isobit.edits.slicing.counted_channels import changed_attributes
from isobit.graph.graph import Graph
from isobit.targets.costs import Costs
from isobit.techniques.pruning.channel_groups import ChannelGroup


def group_cost(graph: Graph, group: ChannelGroup, channels: range, table: Costs | None = None) -> Cost:
    """The cost of all nodes of the group together with these of its channels, all others as they are."""
    kept = group.kept(channels)
    tensors, weights, sizes = dict(graph.tensors), dict(graph.weights), Sizes(graph)
    for slot, stays in kept.items():
        if slot.name in weights:
            fixed = list(weights[slot.name].shape)
            fixed[slot.axis] = len(stays)
            weights[slot.name] = replace(weights[slot.name], shape=tuple(fixed))
        else:
            shape = list(tensors[slot.name].shape or ())
            shape[slot.axis] = len(stays)
            tensors[slot.name] = replace(tensors[slot.name], shape=tuple(shape))

    def left(slot: Slot) -> Indices:
        return kept[slot] if slot in kept else np.arange(sizes.size(slot) or 0)

    nodes = [graph.node(name) for name in group.nodes]
    changed = [
        node if (new := changed_attributes(sizes, node, left)) is None else replace(node, attributes=new)
        for node in nodes
    ]
    return Cost.sum(layer_costs(replace(graph, nodes=tuple(changed), tensors=tensors, weights=weights), table).values())
