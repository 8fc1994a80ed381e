"""The plan: which sites are quantized, to what format, and which are not, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from isobit.encodings.quant_spec import Lpbq, QuantSpec
from isobit.encodings.relations import Relations
from isobit.graph.graph import Graph
from isobit.graph.sites import Input, Site

Kind = Literal["activation", "weight", "bias", "constant"]


@dataclass(frozen=True)
class Placement:
    """One quantized site.

    `tensor` is the activation that is quantized there: for all its readers or, at an Input site, for one. Those of one
    `group` share their encoding. `simulated` is False where the values are on the group's grid already (a Reshape of a
    quantized tensor): the runtime needs the encoding, the simulator no second rounding. `fixed_range` is what the
    operation cannot leave; it gives way to a much smaller range of the data but where the runtime demands it.
    A bias has the scale of its `scale_of`, (input site, weight site), multiplied.
    """

    site: Site
    spec: QuantSpec
    kind: Kind
    tensor: str = ""
    group: str = ""
    simulated: bool = True
    fixed_range: tuple[float, float] | None = None
    range_required: bool = False
    channel_axis: int = 0
    block_axis: int | None = None
    scale_of: tuple[Site, Site] | None = None


@dataclass(frozen=True)
class Plan:
    """Every quantized site of a graph for a target, and the reason for each float tensor or weight left alone.

    `notes` tell where the plan takes another format than the one asked for.
    """

    placements: Mapping[Site, Placement]
    floats: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def of_kind(self, kind: Kind) -> list[Placement]:
        """The placements of one kind, in graph order."""
        return [placement for placement in self.placements.values() if placement.kind == kind]

    def groups(self) -> dict[str, list[Placement]]:
        """Activation placements by group, in graph order."""
        groups: dict[str, list[Placement]] = {}
        for placement in self.of_kind("activation"):
            groups.setdefault(placement.group, []).append(placement)
        return groups

    def relations(self) -> Relations:
        """What the encodings of simulated sites owe each other, whatever their ranges."""
        leaders: dict[Site, Site] = {}
        for members in self.groups().values():
            first = next((member.site for member in members if member.simulated), None)
            if first is not None:
                leaders.update(dict.fromkeys((member.site for member in members), first))
        products: dict[Site, tuple[Site, Site]] = {}
        for bias in self.of_kind("bias"):
            if bias.scale_of is not None:
                source, weight = bias.scale_of
                products[bias.site] = leaders.get(source, source), weight
        ties = {site: first for site, first in leaders.items() if site != first and self.placements[site].simulated}
        return Relations(products, ties, frozenset(p.site for p in self.placements.values() if _is_fixed(p)))


def _is_fixed(placement: Placement) -> bool:
    """Whether no data decides the scale: a known range, a cast, blocks whose scales are integers of another."""
    spec = placement.spec
    is_cast = spec.type_name in ("float16", "bfloat16")
    return placement.fixed_range is not None or is_cast or isinstance(spec.granularity, Lpbq)


#: How the reason begins why an operation stays in float that the target could run on integers.
WITHOUT_GAIN = "integers gain no time here on "

_INSIDE = "inside the fused chain that ends in "


def inside_chain(last: str) -> str:
    """Why a tensor inside a fused chain, which ends in the node `last`, is not quantized."""
    return f"{_INSIDE}{last}"


def is_inside_chain(reason: str) -> bool:
    """Whether a reason is that of `inside_chain`."""
    return reason.startswith(_INSIDE)


def constant_name(graph: Graph, site: Site) -> str:
    """The constant that a Weight site, or an Input site that reads a constant, stands for."""
    if isinstance(site, Input):
        return graph.node(site.node).input(site.index) or ""
    return site.name
