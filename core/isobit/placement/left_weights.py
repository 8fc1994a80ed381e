"""Weights of layers that stay in float though nobody asked for it, and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from isobit.encodings.ranges import is_too_small
from isobit.graph.adapters import find_adapters
from isobit.graph.graph import Graph, Use
from isobit.graph.ops import BODIES, VARIABLES
from isobit.graph.sites import Input, Weight
from isobit.placement.constants import why_float_in_body
from isobit.placement.layer_weights import FLOAT_LAYERS, layer_weights
from isobit.placement.plan import Plan
from isobit.placement.quant_config import QuantConfig
from isobit.targets.target import Target


@dataclass(frozen=True)
class LeftWeight:
    """A weight that one layer reads in float."""

    name: str
    op: str
    why: str


def left_weights(graph: Graph, plan: Plan, target: Target, config: QuantConfig) -> list[LeftWeight]:
    """Weights of layers (see `layer_weights`) that are in float without being told to.

    An override to float, an exclusion and the target's list of exceptions are what was told.
    """
    left = []
    adapters = {layer.name for adapter in find_adapters(graph) for layer in adapter.layers}  # float by rule
    for name, uses in layer_weights(graph).items():
        if Weight(name) in plan.placements or config.override(name)[0]:
            continue
        for use in uses:
            is_told = config.excludes(use.node) or use.node.op in target.excluded_ops or use.node.name in adapters
            if not is_told and Input(use.node.name, use.index) not in plan.placements:
                left.append(LeftWeight(name, use.node.op, _why(graph, plan, target, name, use)))
                break
    return left


def by_reason(left: Iterable[LeftWeight]) -> dict[str, list[LeftWeight]]:
    """The weights grouped by what keeps them in float, the largest group first."""
    groups: dict[str, list[LeftWeight]] = {}
    for weight in left:
        groups.setdefault(weight.why, []).append(weight)
    return dict(sorted(groups.items(), key=lambda item: -len(item[1])))


def _why(graph: Graph, plan: Plan, target: Target, name: str, use: Use) -> str:
    dtype, op = graph.weights[name].dtype, use.node.op
    if dtype != "float32":
        return f"it is {dtype}: only float32 is quantized, so convert the model to float32"
    if op in BODIES:
        return plan.floats.get(name) or why_float_in_body(graph, name, use)
    if VARIABLES in use.node.attributes:
        return f"{op} runs whole, as its framework has it"
    if op in FLOAT_LAYERS:
        return f"no runtime computes {op} in integers"
    if is_too_small(plan.floats.get(name, "")):
        return plan.floats[name]
    if not target.quantizes(op):
        return f"target {target.name!r} runs {op} in float"
    floats = {tensor: why for tensor, why in plan.floats.items() if tensor in graph.tensors}
    others = [floats[other] for other in use.node.inputs if other is not None and other in floats]
    if others:
        return f"{op} reads a tensor that stays in float ({others[0]})"
    if all(other in graph.weights for other in use.node.inputs if other is not None):
        return f"{op} reads constants alone"
    return f"{op} stays in float"
