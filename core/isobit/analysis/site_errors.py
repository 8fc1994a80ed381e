"""Each quantizer's part in the error of the output, split into causes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from isobit.analysis.findings import CAP, Depth, SiteError
from isobit.analysis.importance import Worth
from isobit.analysis.tensor_noise import Floats, MeasuredNoise, TensorNoise
from isobit.analysis.weight_noise import WeightNoise
from isobit.backend.checked_model import CheckedModel
from isobit.encodings.encoding import Encoding
from isobit.graph.graph import Graph
from isobit.html_report import DrawnValues
from isobit.placement.plan import Placement, Plan, constant_name


def site_errors(
    model: CheckedModel,
    plan: Plan,
    noise: MeasuredNoise,
    weights: Mapping[tuple[str, int], WeightNoise],
    worth: Worth,
) -> list[SiteError]:
    """All quantizers that are simulated, those that share a grid as one, the largest shares first."""
    encodings = dict(model.encodings())
    errors = []
    for members in plan.groups().values():
        simulated = [member for member in members if member.site in encodings]
        if simulated:
            errors.append(_of_activation(model.graph, simulated, encodings[simulated[0].site], noise, worth))
    for placement in (*plan.of_kind("weight"), *plan.of_kind("constant")):
        if placement.site in encodings:
            errors.append(_of_constant(model, placement, encodings[placement.site], weights, worth))
    return sorted(errors, key=lambda error: -error.share)


def error_by_depth(graph: Graph, noise: MeasuredNoise) -> tuple[Depth, ...]:
    """The error at each float tensor that a node computes, in the order of execution."""
    steps = []
    for node in graph.nodes:
        for output in node.outputs:
            measured = noise.tensors.get(output)
            if measured is not None:
                ratio = decibels(measured.signal.sum(), measured.after.sum())
                steps.append(Depth(output, node.op, ratio, _inherited(measured)))
    return tuple(steps)


def decibels(signal: float, noise: float) -> float:
    """The ratio in dB, -100 at least; infinite without noise."""
    if noise <= 0:
        return math.inf
    return max(10 * math.log10(signal / noise), -CAP) if signal > 0 else -CAP


def _inherited(noise: TensorNoise) -> float:
    total = float((noise.before + noise.own).sum())
    return float(noise.before.sum()) / total if total > 0 else 0.0


def _of_activation(
    graph: Graph, members: Sequence[Placement], encoding: Encoding, noise: MeasuredNoise, worth: Worth
) -> SiteError:
    first = members[0]
    causes: dict[str, float] = {}
    measured = {member.site: noise.at(member.site) for member in members}
    there = [item for item in measured.values() if item is not None]
    # The range of the group: members of one grid are not told to be narrower than their widest.
    low = min((float(item.low.min()) for item in there), default=0.0)
    high = max((float(item.high.max()) for item in there), default=0.0)
    for site, item in measured.items():
        value = worth.sites.get(site)
        if item is not None and value is not None and value.size == item.channels:
            for cause, share in _activation_causes(item, value, encoding, low, high).items():
                causes[cause] = causes.get(cause, 0.0) + share
    producer = graph.producer(first.tensor)
    readers = [f"{use.node.name} ({use.node.op})" for use in graph.uses(first.tensor)]
    item = measured[first.site]
    drawn = DrawnValues()
    if item is not None and item.values is not None:
        drawn = DrawnValues.of(item.values, encoding, None).with_ranges(item.low, item.high, encoding)
    return SiteError(
        str(first.site),
        first.kind,
        producer.name if producer is not None else "",
        producer.op if producer is not None else "input",
        tuple(dict.fromkeys(readers)),
        str(encoding.spec),
        (float(encoding.minimum.min()), float(encoding.maximum.max())),
        (low, high),
        sum(causes.values()),
        causes,
        0.0 if item is None else _inherited(item),
        math.inf if item is None else decibels(float(item.signal.sum()), float(item.after.sum())),
        max((item.outside for item in there), default=0.0),
        0 if item is None else item.channels,
        0 if item is None else _dead(item),
        step=float(encoding.scale.max()),
        histogram=drawn.histogram,
        channel_ranges=drawn.channel_ranges,
        ranges_on_grid=drawn.ranges_on_grid,
        sites=tuple(member.site for member in members),
    )


def _dead(noise: TensorNoise) -> int:
    """Channels that hold one number alone, of a tensor with several channels of more than one value each."""
    if noise.values is None or noise.channels < 2 or noise.values.size <= noise.channels:
        return 0
    return int(np.count_nonzero(noise.low == noise.high))


def _activation_causes(
    noise: TensorNoise, worth: Floats, encoding: Encoding, low: float, high: float
) -> dict[str, float]:
    clipping = np.minimum(noise.clipped, noise.own)
    shift = np.minimum(np.square(noise.shift), noise.own - clipping)
    rest = noise.own - clipping - shift
    causes = {"clipping": float((worth * clipping).sum()), "mean shift": float((worth * shift).sum())}
    if encoding.spec.is_integer and encoding.scale.ndim == 0:
        width = float(encoding.maximum - encoding.minimum)
        needed = min(1.0, float(_width(low, high, encoding)) / width)
        own = np.minimum(needed, _width(noise.low, noise.high, encoding) / width)
        causes["wide range"] = float((worth * rest).sum()) * (1 - needed**2)
        causes["channel spread"] = float((worth * rest * (needed**2 - np.square(own))).sum())
        rest = rest * np.square(own)
    causes["rounding"] = float((worth * rest).sum())
    return causes


def _width(low: Floats | float, high: Floats | float, encoding: Encoding) -> Floats:
    """How wide a grid of this kind is that covers such values and zero."""
    down, up = np.minimum(low, 0.0), np.maximum(high, 0.0)
    return np.asarray(
        2 * np.maximum(-down, up) if encoding.spec.symmetric and encoding.spec.dtype == "int" else up - down
    )


def _of_constant(
    model: CheckedModel,
    placement: Placement,
    encoding: Encoding,
    weights: Mapping[tuple[str, int], WeightNoise],
    worth: Worth,
) -> SiteError:
    graph, name = model.graph, constant_name(model.graph, placement.site)
    causes = {"mean shift": 0.0, "channel spread": 0.0, "rounding": 0.0}
    readers = [key for key, item in weights.items() if item.site == placement.site]
    for key in readers:
        item, value = weights[key], worth.weights.get(key)
        causes["rounding"] += worth.fallback.get(key, 0.0)
        if value is None or item.power is None or item.shift is None:
            continue
        shift = np.minimum(np.square(item.shift), item.power)
        rest = item.power - shift
        finer = rest if item.by_channel is None else np.minimum(item.by_channel, rest)
        causes["mean shift"] += float((value * shift).sum())
        causes["channel spread"] += float((value * (rest - finer)).sum())
        causes["rounding"] += float((value * finer).sum())
    values = model.weight(name)
    drawn = DrawnValues.of(values, encoding, placement.channel_axis)
    node = readers[0][0] if readers else ""
    return SiteError(
        str(placement.site),
        placement.kind,
        node,
        graph.node(node).op if node else "",
        tuple(f"{reader} ({graph.node(reader).op})" for reader, _ in readers),
        str(encoding.spec),
        (float(encoding.minimum.min()), float(encoding.maximum.max())),
        (float(values.min(initial=0.0)), float(values.max(initial=0.0))),
        sum(causes.values()),
        causes,
        sqnr=decibels(float(np.square(values, dtype=np.float64).sum()), _weight_error(values, encoding)),
        channels=values.shape[placement.channel_axis] if values.ndim else 1,
        step=float(encoding.scale.max()),
        histogram=drawn.histogram,
        channel_ranges=drawn.channel_ranges,
        ranges_on_grid=drawn.ranges_on_grid,
        sites=(placement.site,),
    )


def _weight_error(values: Floats, encoding: Encoding) -> float:
    return float(np.square(encoding.fake_quantize(values).astype(np.float64) - values).sum())
