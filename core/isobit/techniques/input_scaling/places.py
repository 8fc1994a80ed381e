"""Where channels of activations can be balanced: regions, and what takes the factors in at their start."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from isobit.edits.draft import Draft
from isobit.edits.edit import Insert, NewNode
from isobit.encodings.quant_spec import PerChannel, PerTensor
from isobit.graph.graph import Graph, Node
from isobit.graph.sites import Input, Tensor, Weight
from isobit.placement.plan import Plan
from isobit.statistics.channel_moments import ChannelMoments
from isobit.statistics.observer import Request
from isobit.techniques.context import Requests, TechniqueContext
from isobit.techniques.input_scaling.carriers import Carrier, by_axis, find_carrier
from isobit.techniques.input_scaling.powers_of_two import Exponents
from isobit.techniques.input_scaling.region_error import activation_placement
from isobit.techniques.input_scaling.regions import Region, find_region
from isobit.techniques.layers.weighted_layer import LAYERS


@dataclass(frozen=True, eq=False)
class Place:
    """A region, and what takes the factors in: constants of a carrier, or a Mul where there is none.

    `behind` is the region behind its curve, whose layers tell what noise costs.
    """

    region: Region
    carrier: Carrier | None
    behind: Region | None = None

    @property
    def has_mul(self) -> bool:
        """Whether a Mul is added, which costs time."""
        return self.carrier is None or self.region.curve is not None

    @property
    def between(self) -> tuple[str, ...]:
        """Tensors before the start that take the factors too."""
        return self.carrier.between if self.carrier is not None else ()


def find_places(context: TechniqueContext, *, muls: bool = True) -> tuple[list[Place], dict[str, str]]:
    """All places in graph order, and why other rounded tensors of channels have none."""
    graph, plan = context.graph, context.plan
    places: list[Place] = []
    left: dict[str, str] = {}
    for tensor in dict.fromkeys(placement.tensor for placement in plan.of_kind("activation")):
        place = _place(graph, plan, tensor)
        if isinstance(place, Place):
            places.append(place)
        elif place:
            left[tensor] = place
    if not muls:
        left.update({place.region.name: "only a Mul could balance it" for place in places if place.has_mul})
        return [place for place in places if not place.has_mul], left
    useless = _rounded_twice(context, [place for place in places if place.has_mul])
    left.update(useless)
    return [place for place in places if place.region.name not in useless], left


def _place(graph: Graph, plan: Plan, tensor: str) -> Place | str:
    region = find_region(graph, tensor)
    if isinstance(region, str):
        return region
    placement = activation_placement(graph, plan, tensor, region)
    if placement is None:
        return ""  # its readers in the region read it in float
    if not placement.spec.is_integer or isinstance(placement.spec.granularity, PerChannel):
        return "its grid is none of integers with one scale"
    channels = (graph.tensors[tensor].shape or ())[graph.tensors[tensor].channel_axis or 0]
    if not isinstance(channels, int) or channels < 2:
        return "it has one channel, or nobody knows how many"
    carrier = None
    if region.whole:
        carrier = find_carrier(graph, tensor, lambda node, name: _is_free(plan, node, name))
    if region.curve is None:
        return Place(region, carrier)
    behind = find_region(graph, region.curve.outputs[0])
    if carrier is None:
        return f"{region.curve.name} ({region.curve.op}) reads it, and nothing before it can carry factors"
    if isinstance(behind, str) or behind.curve is not None:
        return f"no layer behind {region.curve.name} ({region.curve.op}) tells what its noise costs"
    return Place(region, carrier, behind)


def _is_free(plan: Plan, node: Node, name: str) -> bool:
    """Whether a constant may have other sizes by channel: a layer's has a scale for each row, others are in float."""
    placement = plan.placements.get(Input(node.name, node.inputs.index(name))) or plan.placements.get(Weight(name))
    if placement is None:
        return True
    by_row = not isinstance(placement.spec.granularity or PerTensor(), PerTensor) and placement.channel_axis == 0
    return node.op in LAYERS and (by_row or not placement.spec.is_integer)


def moment_requests(places: list[Place]) -> Requests:
    """The moments to observe of all tensors that take the factors, or tell what they are worth."""
    names = [
        name
        for place in places
        for region in (place.region, place.behind)
        if region is not None
        for name in (*region.tensors, *place.between)
    ]
    return Requests([Request(Tensor(name), ChannelMoments()) for name in dict.fromkeys(names)])


def _rounded_twice(context: TechniqueContext, places: list[Place]) -> dict[str, str]:
    """The places where the target would round on the wrong side of the Mul too, and so undo what it is for."""
    if not places or context.replan is None:
        return {}
    draft = Draft(context.graph, context.model.weight)
    muls = {
        place.region.name: insert_factors(draft, place, np.zeros(_channels(context.graph, place), np.int64))
        for place in places
    }
    placements = context.replan(draft.plan().graph).placements
    rounded = {placement.tensor for placement in placements.values() if placement.kind == "activation"}
    reasons = {}
    for place in places:
        added = muls[place.region.name]
        is_for_curve = place.region.curve is not None
        before = Tensor(place.region.start) in placements or any(Input(node.name, 0) in placements for node in added)
        behind = any(node.outputs[0] in rounded for node in added)
        if before != is_for_curve or behind == is_for_curve:
            reasons[place.region.name] = (
                "the target rounds it on the other side of a Mul too, and nothing else carries factors"
            )
    return reasons


def insert_factors(draft: Draft, place: Place, exponents: Exponents) -> list[Node]:
    """Multiply the start by powers of two, for all its readers or for those of the region; returns the Muls."""
    region, info = place.region, draft.graph.tensors[place.region.start]
    name = draft.free_name(f"{region.start}.balance")
    factors = by_axis(np.exp2(exponents.astype(np.float64)), (info.rank or 0) - 1 - (info.channel_axis or 0))
    constants = {name: factors.astype(np.float32)}
    known = {node.name for node in draft.graph.nodes}
    sites = [Tensor(region.start)] if region.whole else [Input(use.node.name, use.index) for use in region.entries]
    for site in sites:
        draft.apply(Insert(site, (NewNode("Mul", (name,)),), constants))
        constants = {}
    return [node for node in draft.graph.nodes if node.name not in known]


def _channels(graph: Graph, place: Place) -> int:
    info = graph.tensors[place.region.start]
    return int((info.shape or ())[info.channel_axis or 0] or 0)
