"""What the data forbids a grid: tensors never seen, too small for any scale, and parts of a Concat that do not fit."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from isobit.encodings.encoding import Encoding
from isobit.encodings.quant_spec import PerChannel
from isobit.encodings.ranges import encode_range, too_small
from isobit.graph.graph import Graph, Node
from isobit.graph.ops import VALUE_PRESERVING
from isobit.graph.sites import Site, Tensor
from isobit.placement.plan import Placement, Plan, is_inside_chain
from isobit.statistics.channel_range import ChannelRange
from isobit.statistics.histogram import Histogram
from isobit.statistics.statistics import Statistics

#: A part of a Concat for which the grid of all has fewer levels than this, and less than 1/32 of them, is lost in it;
#: and so is one for which it has zero and one level more, and which is less than 1/8 of the largest: of two bits a
#: level is a third of all.
_FEWEST_LEVELS, _LARGEST_RATIO = 8, 32
_ONE_LEVEL, _LARGEST_RATIO_OF_ONE = 1.5, 8

Range = tuple[float, float]


@dataclass(frozen=True)
class Fit:
    """Tensors that stay in float with the reason, by name, and what the user should be told."""

    apart: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def fit(graph: Graph, plan: Plan, statistics: Statistics, frozen: Collection[Site] = ()) -> Fit:
    """What the ranges of the data say against a plan. Groups with a frozen encoding are left as they are."""
    apart: dict[str, str] = {}
    notes: list[str] = []
    for members in unseen_groups(plan, statistics):
        if not any(member.site in frozen for member in members):
            apart.update(dict.fromkeys((m.tensor for m in members), "calibration never saw a value of it"))
    if apart:
        names = ", ".join(list(apart)[:3]) + (", ..." if len(apart) > 3 else "")
        notes.append(f"{len(apart)} tensor(s) stay in float, because calibration never saw a value of them: {names}")
    tiny = _tiny(plan, statistics, frozen)
    apart.update(tiny.apart)
    notes += tiny.notes
    by_tensor = {placement.tensor: placement for placement in plan.of_kind("activation")}
    kept = {placement.group for placement in plan.of_kind("activation") if placement.site in frozen}
    for node in graph.nodes:
        placement = by_tensor.get(node.outputs[0])
        if node.op != "Concat" or placement is None or placement.group in kept or placement.tensor in apart:
            continue
        misfit = _misfit(graph, node, placement, by_tensor, statistics)
        if misfit is None:
            continue
        if _is_computed_on(graph, plan, node.outputs[0], by_tensor):
            notes.append(
                f"{misfit}; what reads it needs one grid: a format of 16 bits may help, or exclude={[node.name]}, with "
                "which its parts keep grids of their own and are rounded once more behind it"
            )
            continue
        apart[node.outputs[0]] = misfit
        notes.append(f"{misfit}; it stays in float, and its parts are kept apart")
    return Fit(apart, tuple(notes))


def _tiny(plan: Plan, statistics: Statistics, frozen: Collection[Site]) -> Fit:
    """Groups of which the smallest scale that a grid may have would leave a few levels or none."""
    apart: dict[str, str] = {}
    notes: list[str] = []
    for members in plan.groups().values():
        spec = members[0].spec
        reducers = [statistics.get(Tensor(m.tensor)) for m in members if m.simulated and m.fixed_range is None]
        spans = [_span((r.minimum, r.maximum)) for r in reducers if isinstance(r, Histogram) and not r.is_empty]
        if not spans or not spec.is_integer or any(member.site in frozen for member in members):
            continue
        why = too_small(max(spans), spec)
        if why:
            apart.update(dict.fromkeys((member.tensor for member in members), why))
            notes.append(f"{members[0].tensor} stays in float: {why}")
    return Fit(apart, tuple(notes))


def unseen_groups(plan: Plan, statistics: Statistics) -> list[list[Placement]]:
    """Groups that were observed and of which no value was seen; none where nothing at all was seen."""
    groups: list[list[Placement]] = []
    seen_one = False
    for members in plan.groups().values():
        reducers = [statistics.get(Tensor(m.tensor)) for m in members if m.simulated and m.fixed_range is None]
        ranges = [reducer for reducer in reducers if isinstance(reducer, Histogram | ChannelRange)]
        seen = any(not reducer.is_empty for reducer in ranges)
        seen_one = seen_one or seen
        if ranges and len(ranges) == len(reducers) and not seen:
            groups.append(members)
    return groups if seen_one else []


def apart_in_file(graph: Graph, plan: Plan, encodings: Mapping[Site, Encoding]) -> dict[str, str]:
    """What a Concat joins in encodings from elsewhere that have several grids for its parts and none for the whole."""
    apart = {}
    for node in graph.nodes:
        whole = Tensor(node.outputs[0])
        if node.op != "Concat" or whole in encodings or whole not in plan.placements:
            continue
        parts = [encodings[Tensor(name)] for name in node.inputs if name is not None and Tensor(name) in encodings]
        if any(part != parts[0] for part in parts):
            apart[whole.name] = "the encodings that were loaded keep its parts apart"
    return apart


def _misfit(
    graph: Graph, node: Node, placement: Placement, by_tensor: Mapping[str, Placement], statistics: Statistics
) -> str | None:
    """What is wrong with one grid for the parts of a Concat, or None."""
    if not placement.spec.is_integer or isinstance(placement.spec.granularity, PerChannel):
        return None
    ranges = {name: _range(graph, name, by_tensor, statistics) for name in node.inputs if name is not None}
    parts = {name: span for name, span in ranges.items() if span is not None}
    if len(parts) < 2:
        return None
    largest = max(parts, key=lambda name: _span(parts[name]))
    whole = min(low for low, _ in parts.values()), max(high for _, high in parts.values())
    step, most = float(encode_range(*whole, placement.spec).scale), _span(parts[largest])
    limits = ((_FEWEST_LEVELS, _LARGEST_RATIO), (_ONE_LEVEL, _LARGEST_RATIO_OF_ONE))
    least = max(min(levels * step, most / ratio) for levels, ratio in limits)
    lost = [name for name, span in parts.items() if 0 < _span(span) < least]
    if not lost:
        return None
    low, high = parts[lost[0]]
    return (
        f"{node.op} {node.name} joins {largest!r} in [{parts[largest][0]:.4g}, {parts[largest][1]:.4g}] and "
        f"{lost[0]!r} in [{low:.4g}, {high:.4g}], for which one grid has a step of {step:.3g}"
    )


def _span(bounds: Range) -> float:
    """The width of a range with zero in it, as grids have."""
    return max(bounds[1], 0.0) - min(bounds[0], 0.0)


def _range(graph: Graph, name: str, by_tensor: Mapping[str, Placement], statistics: Statistics) -> Range | None:
    """What is known of the values of a tensor: seen, fixed by its operation, or those that it was moved from."""
    reducer = statistics.get(Tensor(name))
    if isinstance(reducer, Histogram) and not reducer.is_empty:
        return reducer.minimum, reducer.maximum
    placement = by_tensor.get(name)
    if placement is not None and placement.fixed_range is not None:
        return placement.fixed_range
    producer = graph.producer(name)
    if producer is None or producer.op not in VALUE_PRESERVING:
        return None
    sources = producer.inputs if producer.op == "Concat" else producer.inputs[:1]
    ranges = [_range(graph, source, by_tensor, statistics) for source in sources if source is not None]
    bounds = [span for span in ranges if span is not None]
    if not bounds or len(bounds) < len(ranges):
        return None
    return min(low for low, _ in bounds), max(high for _, high in bounds)


def _is_computed_on(graph: Graph, plan: Plan, name: str, by_tensor: Mapping[str, Placement]) -> bool:
    """Whether a weighted operation or another one that computes on the grid reads a tensor, behind moves or at once.

    One that runs with what follows it rounds at the end of its chain alone.
    """
    for use in graph.uses(name):
        if use.node.op not in VALUE_PRESERVING:
            if any(out in by_tensor or is_inside_chain(plan.floats.get(out, "")) for out in use.node.outputs):
                return True
        elif any(_is_computed_on(graph, plan, output, by_tensor) for output in use.node.outputs):
            return True
    return False
