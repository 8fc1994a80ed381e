"""A warning where a plan quantizes nothing, or leaves weights of layers, or what they compute, in float unasked."""

from __future__ import annotations

from isobit.encodings.ranges import is_too_small
from isobit.errors import CoverageWarning
from isobit.graph.ops import WEIGHTED
from isobit.placement.coverage import Coverage
from isobit.placement.left_weights import by_reason, left_weights
from isobit.quantsim.simulation import Simulation
from isobit.warn import warn

#: Reasons, and names of each, that a warning shows; the report has them all.
_REASONS_SHOWN, _NAMES_SHOWN = 4, 3


def warn_of_coverage(simulation: Simulation) -> None:
    """Warn where nothing is quantized, or where weights stay in float without being told to."""
    text = coverage_problem(simulation)
    if text and text not in simulation.warned:
        simulation.warned.add(text)
        warn(text, CoverageWarning)


def _nothing(simulation: Simulation, detail: str) -> str:
    """What is said where no tensor is quantized; `detail` is about weights, and empty where there are none."""
    if not detail:
        names: dict[str, list[str]] = {}
        for name, why in simulation.plan.floats.items():
            names.setdefault(why, []).append(name)
        groups = sorted(names.items(), key=lambda item: -len(item[1]))
        reasons = [f"{why}: {', '.join(some[:_NAMES_SHOWN])}" for why, some in groups[:_REASONS_SHOWN]]
        detail = "; ".join(reasons) or "the model computes nothing in float"
    advice = "what is written is the float model"
    if f"target {simulation.target.name!r} runs" in detail and simulation.target.name != "default":
        advice += "; target 'default' quantizes all operations"
    return f"nothing was quantized on target {simulation.target.name!r} ({detail}): {advice}"


def coverage_problem(simulation: Simulation) -> str:
    """What is wrong with how much the plan quantizes, for a warning; empty where nothing is."""
    graph, plan, target = simulation.graph, simulation.plan, simulation.target
    config = simulation.config.carried(simulation.model.removed, graph)
    left = left_weights(graph, plan, target, config)
    groups = by_reason(left)
    reasons = []
    for why, weights in list(groups.items())[:_REASONS_SHOWN]:
        names = [weight.name for weight in weights[:_NAMES_SHOWN]]
        more = f" and {len(weights) - len(names)} more" if len(weights) > len(names) else ""
        reasons.append(f"{len(weights)} because {why}: {', '.join(names)}{more}")
    if len(groups) > _REASONS_SHOWN:
        reasons.append(f"{len(groups) - _REASONS_SHOWN} more reasons")
    detail = "; ".join(reasons)
    if not plan.placements:
        return _nothing(simulation, detail)
    coverage = Coverage.of(graph, plan)
    if not left:
        return _vanishing(simulation, coverage)
    advice = "see report.left_in_float, and exclude or override what is meant to stay in float"
    plural = "weight stays" if len(left) == 1 else "weights stay"
    return f"{len(left)} {plural} in float on target {target.name!r} ({coverage}): {detail}; {advice}"


def _vanishing(simulation: Simulation, coverage: Coverage) -> str:
    """What is said where layers compute in float because what they read or make is too small for a grid."""
    graph, floats = simulation.graph, simulation.plan.floats
    layers, tensors = [], dict[str, None]()
    for node in graph.nodes:
        ends = [name for name in (*node.inputs, *node.outputs) if name in graph.tensors]
        small = [name for name in ends if name is not None and is_too_small(floats.get(name, ""))]
        if node.op in WEIGHTED and small:
            layers.append(node.name)
            tensors.update(dict.fromkeys(small))
    if not layers:
        return ""
    names = list(tensors)[:_NAMES_SHOWN]
    more = f" and {len(tensors) - len(names)} more" if len(tensors) > len(names) else ""
    what = "1 layer computes" if len(layers) == 1 else f"{len(layers)} layers compute"
    return (
        f"{what} in float ({coverage}): {names[0]}: {floats[names[0]]} ({', '.join(names)}{more}): where signals "
        "vanish so, as with weights that were never trained, decibels say nothing of the trained network"
    )
