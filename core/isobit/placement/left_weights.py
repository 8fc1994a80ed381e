"""Weights of layers that stay in float though nobody asked for it, and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from isobit.encodings.ranges import too_small
from isobit.graph.adapters import find_adapters
from isobit.graph.graph import Graph, Use
from isobit.graph.ops import BODIES, RECURRENT, VARIABLES, WEIGHTED
from isobit.graph.sites import Input, Weight
from isobit.placement.constants import in_body, is_matrix, why_float_in_body
from isobit.placement.plan import Plan
from isobit.placement.quant_config import QuantConfig
from isobit.placement.signal_tensors import signal_tensors
from isobit.targets.target import Target

_ROLES = ("weight", "recurrent_weight")


@dataclass(frozen=True)
class LeftWeight:
    """A weight that one layer reads in float."""

    name: str
    op: str
    why: str


def left_weights(graph: Graph, plan: Plan, target: Target, config: QuantConfig) -> list[LeftWeight]:
    """Weights of Conv, ConvTranspose, Linear, MatMul and recurrent layers that are in float without being told to.

    Matrices that the bodies of an If, a Loop or a Scan read count as weights too.

    An override to float, an exclusion and the target's list of exceptions are what was told. What is multiplied with
    positions alone (rotary embeddings) is no weight: phases stay in float by rule.
    """
    left = []
    signal = signal_tensors(graph)
    adapters = {layer.name for adapter in find_adapters(graph) for layer in adapter.layers}  # float by rule
    for name, info in graph.weights.items():
        if not info.is_float or Weight(name) in plan.placements or config.override(name)[0]:
            continue
        for use in graph.uses(name):
            is_told = config.excludes(use.node) or use.node.op in target.excluded_ops or use.node.name in adapters
            is_weight = _is_weight(graph, use) and not signal.isdisjoint(use.node.inputs)
            is_weight |= use.node.op in BODIES and (is_matrix(info) or in_body(use) is not None)
            if is_weight and not is_told and Input(use.node.name, use.index) not in plan.placements:
                left.append(LeftWeight(name, use.node.op, _why(graph, plan, target, config, name, use)))
                break
    return left


def by_reason(left: Iterable[LeftWeight]) -> dict[str, list[LeftWeight]]:
    """The weights grouped by what keeps them in float, the largest group first."""
    groups: dict[str, list[LeftWeight]] = {}
    for weight in left:
        groups.setdefault(weight.why, []).append(weight)
    return dict(sorted(groups.items(), key=lambda item: -len(item[1])))


def _is_weight(graph: Graph, use: Use) -> bool:
    """Whether a constant is multiplied with a signal here; the first operand of a MatMul may be the constant one.

    A layer that a backend keeps whole, as its framework has it, is taken to multiply with the matrices that it reads.
    """
    if VARIABLES in use.node.attributes:
        first = len(use.node.inputs) - int(use.node.attributes[VARIABLES])
        return use.index >= first and len(graph.weights[use.node.inputs[use.index] or ""].shape) > 1
    if use.node.op not in WEIGHTED | RECURRENT:
        return False
    return use.role in _ROLES or (use.node.op == "MatMul" and use.index == 0)


def _why(graph: Graph, plan: Plan, target: Target, config: QuantConfig, name: str, use: Use) -> str:
    dtype, op = graph.weights[name].dtype, use.node.op
    if dtype != "float32":
        return f"it is {dtype}: only float32 is quantized, so convert the model to float32"
    if op in BODIES:
        return why_float_in_body(graph, name, use)
    if VARIABLES in use.node.attributes:
        return f"{op} runs whole, as its framework has it"
    if target.quantizes(op) or op in target.weights_only:
        tiny = too_small(graph.weights[name].magnitude or 0.0, target.weight_format(config.weights, op))
        if tiny:
            return tiny
    if not target.quantizes(op):
        return f"target {target.name!r} runs {op} in float"
    floats = {tensor: why for tensor, why in plan.floats.items() if tensor in graph.tensors}
    others = [floats[other] for other in use.node.inputs if other is not None and other in floats]
    if others:
        return f"{op} reads a tensor that stays in float ({others[0]})"
    if all(other in graph.weights for other in use.node.inputs if other is not None):
        return f"{op} reads constants alone"
    return f"{op} stays in float"
