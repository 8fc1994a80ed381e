"""Groups of channels: those of layers that can leave the network, each with all that leaves with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np

from isobit.edits.edit import Slice, SliceTogether
from isobit.edits.slicing.channel_coupling import Coupled, Coupling
from isobit.edits.slicing.channel_relations import Indices, Slot
from isobit.graph.graph import Graph, Node
from isobit.graph.ops import RECURRENT, WEIGHTED
from isobit.techniques.layers.weighted_layer import weight_obstacle

#: Ops whose outputs are channels of their own, one for each row of the weight.
_PRODUCERS = frozenset({"Conv", "ConvTranspose", "Linear", "MatMul"})


#: What was found of graphs, which do not change, for as long as they are there.
_FOUND: WeakKeyDictionary[Graph, tuple[list[ChannelGroup], dict[str, str]]] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """`count` channels that may leave one by one, each with every index of every slot that has its number.

    `numbers` has by slot a number for each index, -1 for an index of no channel of the group. `producers` are the
    layers that make the channels, in execution order, `readers` those that read them with a weight, `between` whatever
    else holds them. `unmeasured` says why the error of the outputs does not tell what a channel is worth.
    """

    name: str
    count: int
    numbers: Mapping[Slot, Indices]
    producers: tuple[str, ...]
    readers: tuple[str, ...]
    between: tuple[str, ...]
    unmeasured: str = ""

    @property
    def nodes(self) -> tuple[str, ...]:
        """All nodes that get smaller, those that make the channels first."""
        return tuple(dict.fromkeys((*self.producers, *self.readers, *self.between)))

    def kept(self, channels: Iterable[int]) -> dict[Slot, Indices]:
        """By slot the indices that are left where these channels stay."""
        stays = np.zeros(self.count + 1, np.bool_)
        stays[list(channels)] = stays[-1] = True  # -1 is the last
        return {slot: np.flatnonzero(stays[of_slot]) for slot, of_slot in self.numbers.items()}

    def slot(self, graph: Graph) -> Slot:
        """Where its first producer makes the channels."""
        tensor = graph.node(self.producers[0]).outputs[0]
        return Slot(tensor, graph.tensors[tensor].channel_axis or 0)


def kept_of(groups: Iterable[tuple[ChannelGroup, Iterable[int]]]) -> dict[Slot, Indices]:
    """By slot the indices that are left of all groups together, where these channels of each stay."""
    kept: dict[Slot, Indices] = {}
    for group, channels in groups:
        for slot, stays in group.kept(channels).items():
            kept[slot] = np.intersect1d(kept[slot], stays) if slot in kept else stays
    return kept


def edit_of(graph: Graph, groups: Iterable[tuple[ChannelGroup, Iterable[int]]]) -> SliceTogether:
    """The edit that leaves these channels of these groups: one, for groups are found on the graph as it is."""
    slices = []
    for group, channels in groups:
        slot = group.slot(graph)
        slices.append(Slice(slot.name, tuple(group.kept(channels)[slot].tolist())))
    return SliceTogether(tuple(slices))


def find_groups(graph: Graph) -> tuple[list[ChannelGroup], dict[str, str]]:
    """All groups in execution order, and by layer why its channels, or the rest of them, must stay."""
    if graph not in _FOUND:
        _FOUND[graph] = _found(graph)
    groups, left = _FOUND[graph]
    return list(groups), dict(left)


def _found(graph: Graph) -> tuple[list[ChannelGroup], dict[str, str]]:
    coupling = Coupling(graph)
    producers: dict[Slot, list[Node]] = {}
    for node in graph.nodes:
        if (made := _output_slot(graph, node)) is not None:
            producers.setdefault(made, []).append(node)
    coupled = coupling.of(producers)
    left: dict[str, str] = {}
    members: dict[frozenset[Slot], list[int]] = {}
    for number, slots in _slots_of_numbers(coupled).items():
        makers = [node for slot in slots for node in producers.get(slot, ())]
        if not makers:
            continue
        if (why := coupled.fixed.get(number)) is not None:
            for node in makers:
                left.setdefault(node.name, why)
        else:
            members.setdefault(frozenset(slots), []).append(number)
    order = {node.name: place for place, node in enumerate(graph.nodes)}
    groups: list[ChannelGroup] = []
    taken: set[str] = set()
    for numbers in sorted(members.values(), key=min):
        group = _group(graph, coupled, numbers, order, taken)
        if (why := _obstacle(graph, group)) != "":
            for name in group.producers:  # a layer says its own reason, rather than that of another beside it
                left.setdefault(name, _layer_obstacle(graph, name) or why)
        else:
            taken.add(group.name)
            groups.append(group)
    return sorted(groups, key=lambda group: order[group.producers[0]]), left


def _output_slot(graph: Graph, node: Node) -> Slot | None:
    """The axis of a layer's weight that its outputs are."""
    weight = node.input(1)
    if node.op not in _PRODUCERS or weight is None or weight not in graph.weights:
        return None
    shape = graph.weights[weight].shape
    return Slot(weight, len(shape) - 2 if node.op == "MatMul" else 0)


def _slots_of_numbers(coupled: Coupled) -> dict[int, list[Slot]]:
    found: dict[int, list[Slot]] = {}
    for slot, of_slot in coupled.numbers.items():
        for number in np.unique(of_slot).tolist():
            found.setdefault(number, []).append(slot)
    return found


def _group(
    graph: Graph, coupled: Coupled, numbers: list[int], order: Mapping[str, int], taken: set[str]
) -> ChannelGroup:
    chosen = np.asarray(sorted(numbers), np.int64)
    by_slot = {}
    for slot, of_slot in coupled.numbers.items():
        place = np.searchsorted(chosen, of_slot).clip(max=len(chosen) - 1)
        own = np.where(chosen[place] == of_slot, place, -1)
        if (own >= 0).any():
            by_slot[slot] = own
    touched = {use.node.name: use.node for slot in by_slot for use in graph.uses(slot.name)}
    touched |= {node.name: node for slot in by_slot if (node := graph.producer(slot.name)) is not None}
    in_order = sorted(touched.values(), key=lambda node: order[node.name])
    producers = tuple(node.name for node in in_order if _output_slot(graph, node) in by_slot)
    readers = tuple(node.name for node in in_order if input_slot(graph, node) in by_slot)
    stem = name = producers[0]
    number = 1
    while name in taken:
        number += 1
        name = f"{stem}:{number}"
    between = tuple(node.name for node in in_order if node.name not in {*producers, *readers})
    unmeasured = next((why for node in in_order if (why := _unmeasured(node, by_slot, graph)) != ""), "")
    return ChannelGroup(name, len(chosen), by_slot, producers, readers, between, unmeasured)


def input_slot(graph: Graph, node: Node) -> Slot | None:
    """The axis of a layer's weight that its inputs are, where it sums over them: not of a depthwise layer."""
    weight = node.input(1)
    if node.op not in WEIGHTED | RECURRENT or weight is None or weight not in graph.weights:
        return None
    shape = graph.weights[weight].shape
    if node.op == "MatMul":
        return Slot(weight, len(shape) - 1)
    return None if shape[1] == 1 and int(node.attributes.get("group", 1)) > 1 else Slot(weight, 1)


def _unmeasured(node: Node, slots: Mapping[Slot, Indices], graph: Graph) -> str:
    """Why what a node does with the channels does not show in the outputs of readers with weights."""
    if node.op in RECURRENT and input_slot(graph, node) in slots:
        return f"{node.name} ({node.op}) reads them in its gates"
    if node.op != "MatMul" or node.input(1) in graph.weights:
        return ""
    first = node.inputs[0] or ""
    inner = Slot(first, len(graph.tensors[first].shape or ()) - 1)
    return f"{node.name} (MatMul) sums products of two tensors over them" if inner in slots else ""


def _layer_obstacle(graph: Graph, name: str) -> str:
    """Why a layer that makes or reads channels keeps its weight, or an empty text."""
    node = graph.node(name)
    return "" if node.op in RECURRENT else weight_obstacle(graph, node)


def _obstacle(graph: Graph, group: ChannelGroup) -> str:
    """Why a group that could go is left, or an empty text."""
    if group.count == 1:
        return "it has one channel" if len(group.producers) == 1 else "all its channels go together"
    for name in (*group.producers, *group.readers):
        if (why := _layer_obstacle(graph, name)) != "":
            return why
    if (slot := group.slot(graph)) not in group.numbers:
        return f"its channels are on another axis of {slot.name!r} than they are said to be"
    if not group.readers and not group.unmeasured:
        return "no layer with a weight reads its channels"
    return ""
