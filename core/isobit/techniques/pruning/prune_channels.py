"""Channel pruning: channels leave the network with all that belongs to them, and what reads them makes up for it.

Source: He et al., "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017, with the selection of
`isobit.techniques.pruning.elimination`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from isobit.budget import Candidate, Choice, Cost
from isobit.edits.draft import Draft
from isobit.edits.edit import SetWeights
from isobit.edits.slicing.channel_relations import Slot
from isobit.errors import FormatError, did_you_mean
from isobit.graph.graph import Graph
from isobit.statistics.layer_rows.rows import Rows
from isobit.targets.costs import Costs
from isobit.techniques.context import Requests, TechniqueContext
from isobit.techniques.layers.input_rows import input_rows, row_requests
from isobit.techniques.layers.weighted_layer import bias_obstacle, bias_of, set_bias
from isobit.techniques.low_rank.factorise import NO_DATA, check_keep
from isobit.techniques.pruning.channel_groups import ChannelGroup, edit_of, find_groups, input_slot, kept_of
from isobit.techniques.pruning.elimination import eliminated
from isobit.techniques.pruning.group_cost import group_cost, network_cost
from isobit.techniques.pruning.magnitudes import magnitudes
from isobit.techniques.pruning.solved_weights import gone_columns, readers_of, solved
from isobit.techniques.technique import TechniqueReport

#: Sizes that are offered for a group, at most.
_SIZES = 32

Chosen = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class PruneChannels:
    """Remove channels from each group of coupled layers, and solve the weights behind them again.

    `keep` is the share of each group's multiply-accumulates, all other layers as they are; `channels` are those that
    stay in single groups, by the name of the group's first layer; at `keep` 1 these groups alone are pruned. Groups
    keep a multiple of `multiple` channels where they have as many. With data the channels go whose loss the others
    make up for best, without it, or with `data_aware` off, those of the smallest weights, and nothing is solved.
    """

    keep: float = 0.5
    channels: Chosen = field(default_factory=dict)
    multiple: int = 1
    data_aware: bool = True

    method = "channel-pruning"

    def __post_init__(self) -> None:
        check_keep("PruneChannels", self.keep)
        if isinstance(self.multiple, bool) or not isinstance(self.multiple, int) or self.multiple < 1:
            raise FormatError(f"PruneChannels: multiple must be an integer from 1 on, not {self.multiple}")

    @property
    def uses_data(self) -> bool:
        """Whether it takes data, where there is some."""
        return self.data_aware

    def requests(self, context: TechniqueContext) -> Requests:
        """The rows of the inputs of all layers that read channels which may go."""
        return Requests(float=list(row_requests(context.graph, self._readers(context.graph)).values()))

    def _readers(self, graph: Graph) -> list[str]:
        if not self.data_aware:
            return []
        groups = [group for group in find_groups(graph)[0] if self.keep < 1 or group.name in self.channels]
        return list(dict.fromkeys(name for group in groups for name in group.readers))

    # --- what could be done ----------------------------------------------------------------------------------------

    def candidates(
        self, context: TechniqueContext, *, multiple: int = 1, table: Costs | None = None
    ) -> list[Candidate]:
        """Each group of channels with the numbers of them that it may keep, and each layer that has none, with why."""
        model = context.model
        groups, left = find_groups(model.graph)
        rows = input_rows(context, self._readers(model.graph))
        found = [
            Candidate(name, self.method, (name,), Cost(), why=why)
            for name, why in left.items()
            if all(name not in group.producers for group in groups)
        ]
        for group in groups:
            order, errors, measured = _ranked(context, group, rows)
            full = group_cost(model.graph, group, range(group.count), table)
            choices = []
            for size in _sizes(group.count, multiple):
                stays = sorted(set(range(group.count)) - set(order[: group.count - size]))
                cost = group_cost(model.graph, group, range(size), table)
                words = f"{size} of {group.count} channels"
                choices.append(Choice(size, {"channels": stays}, cost, errors[group.count - size - 1], words))
            why = "" if choices else f"it has no smaller multiple of {multiple} channels"
            notes = (group.unmeasured,) if group.unmeasured else ()
            found.append(Candidate(group.name, self.method, group.nodes, full, tuple(choices), why, measured, notes))
        order_of = {node.name: place for place, node in enumerate(model.graph.nodes)}
        return sorted(found, key=lambda candidate: order_of[candidate.layers[0]])

    def chosen(self, choices: Mapping[str, Choice]) -> PruneChannels:
        """The pruning of these groups alone."""
        channels = {name: list(choice.settings["channels"]) for name, choice in choices.items()}
        return PruneChannels(1.0, channels, self.multiple, self.data_aware)

    def cost_together(self, graph: Graph, choices: Mapping[str, Choice], table: Costs | None = None) -> Cost:
        """What the whole network costs with these choices: a layer between two groups loses inputs and outputs."""
        groups = {group.name: group for group in find_groups(graph)[0]}
        chosen = [(groups[name], choice.settings["channels"]) for name, choice in choices.items()]
        return network_cost(graph, chosen, table)

    # --- what is done ----------------------------------------------------------------------------------------------

    def apply(self, context: TechniqueContext) -> TechniqueReport:
        """Prune every group that gets cheaper, or that `channels` names. Raises FormatError for unknown channels."""
        graph = context.graph
        groups, left = find_groups(graph)
        by_name = {group.name: group for group in groups}
        self._check(by_name, left)
        rows = input_rows(context, self._readers(graph))
        pruned: list[tuple[ChannelGroup, list[int]]] = []
        for group in groups:
            stays = self._stays(context, group, rows)
            if isinstance(stays, str):
                left[group.name] = stays
            elif len(stays) == group.count:
                left[group.name] = "all of its channels stay"
            else:
                pruned.append((group, stays))
        notes = []
        if pruned and self.data_aware and not rows:
            notes.append(f"{NO_DATA}; no weights are solved again")
        if self.keep == 1 and not self.channels:
            notes.append("keep is 1 and no channels are given: nothing changes")
        kept = _kept(graph, pruned)
        errors = _pruned(context, pruned, rows) if pruned else {}
        changed = [_words(context.graph, group, stays, errors) for group, stays in pruned]
        notes += [f"{g.name}: chosen by the size of weights, for {g.unmeasured}" for g, _ in pruned if g.unmeasured]
        return TechniqueReport("PruneChannels", tuple(changed), left, notes=tuple(notes), kept=kept)

    def _check(self, groups: Mapping[str, ChannelGroup], left: Mapping[str, str]) -> None:
        for name, channels in self.channels.items():
            if name not in groups:
                layers = {layer: group.name for group in groups.values() for layer in group.producers}
                if name in layers:
                    raise FormatError(f"PruneChannels: the channels of {name!r} go by the name of {layers[name]!r}")
                why = f": {left[name]}" if name in left else did_you_mean(name, groups)
                raise FormatError(f"PruneChannels: no channels of {name!r} can be removed{why}")
            count = groups[name].count
            if not channels or any(not 0 <= channel < count for channel in channels):
                raise FormatError(f"PruneChannels: channels of {name!r} must be some of 0 to {count - 1}")

    def _stays(self, context: TechniqueContext, group: ChannelGroup, rows: Mapping[str, Rows]) -> list[int] | str:
        """The channels of a group that stay, or why none goes."""
        if group.name in self.channels:
            return sorted({int(channel) for channel in self.channels[group.name]})
        if self.keep == 1:
            return "keep is 1: all of its channels stay"
        limit = self.keep * group_cost(context.graph, group, range(group.count)).macs
        sizes = range(self.multiple, group.count, self.multiple)
        fitting = [size for size in sizes if group_cost(context.graph, group, range(size)).macs <= limit]
        if not fitting:
            least = f"{self.multiple} channels cost" if self.multiple > 1 else "one channel costs"
            return f"{least} more than {self.keep:.0%} of its multiply-accumulates"
        order = _ranked(context, group, rows)[0]
        return sorted(set(range(group.count)) - set(order[: group.count - fitting[-1]]))


def _columns(graph: Graph, name: str) -> int:
    """Inputs of one output of a layer, its kernel counted."""
    shape = graph.weights[graph.node(name).inputs[1] or ""].shape
    return int(np.prod(shape[1:])) if graph.node(name).op != "MatMul" else shape[-1]


def _sizes(count: int, multiple: int) -> list[int]:
    """The numbers of channels that are offered, most first."""
    sizes = np.arange(multiple, count, multiple)[::-1]
    if len(sizes) > _SIZES:
        sizes = sizes[np.unique(np.linspace(0, len(sizes) - 1, _SIZES).round().astype(np.int64))]
    return [int(size) for size in sizes]


def _ranked(
    context: TechniqueContext, group: ChannelGroup, rows: Mapping[str, Rows]
) -> tuple[list[int], list[float], bool]:
    """The order in which channels go, the error after each, and whether it is one of outputs on data."""
    readers = [] if group.unmeasured else readers_of(context.model, group, rows)
    if readers:
        return (*eliminated(readers, group.count), True)
    shares = magnitudes(context.model, group)
    order = np.argsort(shares, kind="stable")
    return order.tolist()[:-1], np.cumsum(shares[order]).tolist()[:-1], False


def _pruned(
    context: TechniqueContext, pruned: Sequence[tuple[ChannelGroup, list[int]]], rows: Mapping[str, Rows]
) -> dict[str, float]:
    """Solve the readers again, remove the channels, and say by reader what its output loses."""
    model, graph = context.model, context.graph
    draft, errors = Draft(graph, model.weight), {}
    readers = dict.fromkeys(name for group, _ in pruned for name in group.readers)
    for name in readers:
        node = graph.node(name)
        if name not in rows or input_slot(graph, node) is None:
            continue
        new = solved(model, node, rows[name], gone_columns(graph, pruned, node, _columns(graph, name)))
        errors[name] = new.error
        draft.apply(SetWeights({node.inputs[1] or "": new.weight}))
        if not bias_obstacle(graph, node):
            set_bias(draft, node, bias_of(draft, node, new.shift.size) + new.shift)
    draft.apply(edit_of(graph, pruned))
    model.edit(draft)
    return errors


def _kept(graph: Graph, pruned: Sequence[tuple[ChannelGroup, list[int]]]) -> dict[str, list[int]]:
    """By output of a producer the channels that are left."""
    left = kept_of(pruned)
    producers = [graph.node(name) for group, _ in pruned for name in group.producers]
    slots = {node.outputs[0]: Slot(node.inputs[1] or "", 0) for node in producers if node.op != "MatMul"}
    return {tensor: left[slot].tolist() for tensor, slot in slots.items() if slot in left}


def _words(graph: Graph, group: ChannelGroup, stays: Sequence[int], errors: Mapping[str, float]) -> str:
    text = f"{group.name}: {len(stays)} of {group.count} channels"
    if len(group.producers) > 1:
        text += f", and of {', '.join(group.producers[1:])}"
    known = [f"{name} {errors[name]:.3g}" for name in group.readers if name in errors]
    return text + (f"; error of the outputs by their power: {', '.join(known)}" if known else "")
