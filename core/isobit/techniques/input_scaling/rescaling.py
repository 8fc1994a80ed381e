"""Shifts and factors on input channels of linear layers: out of the activation, into the layers; the function stays.

The activation is changed in the node that computes it where that can carry the change, else by a Mul, and an Add where
it is shifted, before each reader.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from isobit.edits.draft import Draft
from isobit.edits.edit import Insert, NewNode, SetWeights
from isobit.graph.graph import Graph, Node
from isobit.graph.sites import Input, Site, Tensor, Weight
from isobit.placement.plan import Placement, Plan
from isobit.techniques.context import TechniqueContext
from isobit.techniques.input_scaling.carriers import NORMS, Carrier, divide, find_carrier
from isobit.techniques.layers.weighted_layer import (
    LAYERS,
    Floats,
    bias_obstacle,
    bias_of,
    set_bias,
    weight_obstacle,
)

#: Significant bits of a factor: with few bits, float noise seldom rounds a factor to the next value.
_FACTOR_BITS = 6


@dataclass(frozen=True, eq=False)
class Rescaling:
    """What is done to an input x, ``(x - shift) / factors`` by channel, and why: `reason` is for the report."""

    factors: Floats
    shift: Floats
    reason: str = ""

    @classmethod
    def nothing(cls, channels: int) -> Rescaling:
        """The one that changes nothing."""
        return cls(np.ones(channels), np.zeros(channels))

    def snapped(self) -> Rescaling:
        """This one with factors of few bits, so that what is quantized has the same bits in every framework.

        A mean square differs in its last bits between them; so would each scaled weight, and with it its scale.
        """
        return replace(self, factors=in_steps(self.factors, self.factors, _FACTOR_BITS))

    @property
    def is_shifted(self) -> bool:
        """Whether anything is subtracted."""
        return bool(self.shift.any())


def in_steps(values: Floats, size: Floats, bits: int) -> Floats:
    """`values` rounded to steps of ``2**-bits`` of the power of two above `size`."""
    _, exponent = np.frexp(size)
    return np.asarray(np.ldexp(np.rint(np.ldexp(values, bits - exponent)), exponent - bits))


@dataclass(frozen=True, eq=False)
class ScaledInput:
    """A tensor and the quantized linear layers that read it.

    `carrier` computes it and can carry the factors; `shiftable` says whether a shift too has places to go to.
    """

    tensor: str
    readers: tuple[Node, ...]
    carrier: Carrier | None
    shiftable: bool

    @property
    def name(self) -> str:
        """The readers, in words."""
        return ", ".join(node.name for node in self.readers)


def find_inputs(graph: Graph, plan: Plan) -> tuple[list[ScaledInput], dict[str, str]]:
    """Every input of linear layers with quantized weights, and why other such layers have none."""
    readers_by_tensor: dict[str, list[Node]] = {}
    left: dict[str, str] = {}
    for node in graph.nodes:
        if node.op != "Linear" or weight_placement(node, plan) is None:
            continue
        obstacle = weight_obstacle(graph, node) or _axis_obstacle(graph, node.inputs[0] or "")
        if obstacle:
            left[node.name] = obstacle
        else:
            readers_by_tensor.setdefault(node.inputs[0] or "", []).append(node)
    return [_scaled_input(graph, tensor, tuple(readers)) for tensor, readers in readers_by_tensor.items()], left


def _scaled_input(graph: Graph, tensor: str, readers: tuple[Node, ...]) -> ScaledInput:
    carrier = _carrier(graph, tensor, readers)
    shiftable = not any(bias_obstacle(graph, node) for node in readers)
    if carrier is not None:  # an activation behind the carrier lets factors through, but no shift
        source = carrier.source
        shiftable &= source.outputs[0] == tensor and (source.op in LAYERS or source.input(2) is not None)
    return ScaledInput(tensor, readers, carrier, shiftable)


def _axis_obstacle(graph: Graph, tensor: str) -> str:
    info = graph.tensors.get(tensor)
    if info is None:
        return "its input is a constant"
    is_last = info.rank is not None and info.channel_axis == info.rank - 1
    return "" if is_last else "its input has its channels on another axis, or none"


def weight_placement(layer: Node, plan: Plan) -> Placement | None:
    """How the weight of a layer is quantized, or None."""
    return _placement(plan, (Input(layer.name, 1), Weight(layer.inputs[1] or "")))


def input_placement(layer: Node, plan: Plan) -> Placement | None:
    """How the input of a layer is quantized, or None."""
    return _placement(plan, (Input(layer.name, 0), Tensor(layer.inputs[0] or "")))


def _placement(plan: Plan, sites: Sequence[Site]) -> Placement | None:
    return next((plan.placements[site] for site in sites if site in plan.placements), None)


def _carrier(graph: Graph, tensor: str, readers: Sequence[Node]) -> Carrier | None:
    """The norm or linear layer that computes `tensor` for these readers alone, through homogeneous activations."""
    names = {node.name for node in readers}
    if tensor in graph.output_tensors or any(use.node.name not in names for use in graph.uses(tensor)):
        return None
    carrier = find_carrier(graph, tensor)
    if carrier is None or carrier.terms or carrier.source.op not in NORMS | {"Linear"}:
        return None
    return carrier


def rescale(draft: Draft, item: ScaledInput, change: Rescaling) -> str:
    """Change the input and the layers that read it; returns which node now carries the change of the input."""
    factors, shift = change.factors, change.shift
    for node in item.readers:
        weight = node.inputs[1] or ""
        value = draft.value(weight)
        if change.is_shifted:
            current = draft.graph.node(node.name)
            # einsum, not a BLAS product: the idle threads of a BLAS slow down the kernels that follow
            moved = np.einsum("oi,i->o", value.astype(np.float64), shift)
            set_bias(draft, current, bias_of(draft, current, len(value)) + moved)
        draft.apply(SetWeights({weight: value * factors.astype(np.float32)}))
    if item.carrier is None:
        return _insert(draft, item, change)
    divide(draft, item.carrier, factors, shift)
    return item.carrier.name


def _insert(draft: Draft, item: ScaledInput, change: Rescaling) -> str:
    """A Mul, or a Mul and an Add, before every reader. They read the same constants, so a runtime can merge them."""
    stem = item.readers[0].name
    values = {draft.free_name(f"{stem}.input_scale"): 1.0 / change.factors}
    chain = [NewNode("Mul", tuple(values))]
    if change.is_shifted:
        values[name := draft.free_name(f"{stem}.input_shift")] = -change.shift / change.factors
        chain.append(NewNode("Add", (name,)))
    constants = {name: value.astype(np.float32) for name, value in values.items()}
    for node in item.readers:
        draft.apply(Insert(Input(node.name, 0), tuple(chain), constants))
        constants = {}
    return "a Mul and an Add" if change.is_shifted else "a Mul"


def rounded_before(context: TechniqueContext, items: Sequence[ScaledInput]) -> Mapping[str, str]:
    """The tensors that the target would round before a Mul or an Add changes them, and why that is of no use.

    A target that runs Mul on integers rounds its input: the large channels would set the grid of the small ones still.
    """
    inserted = [item for item in items if item.carrier is None]
    if not inserted or context.replan is None:
        return {}
    draft = Draft(context.graph, context.model.weight)
    for item in inserted:
        channels = context.graph.weights[item.readers[0].inputs[1] or ""].shape[1]
        shift = np.full(channels, float(item.shiftable))  # any shift: the plan depends on the nodes alone
        _insert(draft, item, Rescaling(np.ones(channels), shift))
    replanned = context.replan(draft.plan().graph)
    sites = {site for site, placement in replanned.placements.items() if placement.kind == "activation"}
    reasons = {}
    for item in inserted:
        muls = [use.node for use in draft.graph.uses(item.tensor) if use.node.op == "Mul"]
        adds = [use.node for mul in muls for use in draft.graph.uses(mul.outputs[0]) if use.node.op == "Add"]
        early = [Tensor(item.tensor), *(Tensor(add.inputs[0] or "") for add in adds)]
        early_inputs = [Input(node.name, 0) for node in (*muls, *adds)]
        if not sites.isdisjoint([*early, *early_inputs]):
            reasons[item.tensor] = "the target rounds it before factors could be taken out, and nothing can carry them"
    return reasons
