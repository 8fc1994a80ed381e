"""For a quantizer that hurts, the one change that repairs it at the least cost, and what it is expected to gain."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from isobit.analysis.findings import LEAST, Advice, Change, SiteError
from isobit.analysis.importance import Worth
from isobit.analysis.site_errors import decibels
from isobit.analysis.tensor_noise import Floats, MeasuredNoise
from isobit.analysis.weight_noise import WeightNoise
from isobit.analysis.words import describe
from isobit.backend.checked_model import CheckedModel
from isobit.calibration.scheme import Calibrator
from isobit.calibration.schemes.minmax import MinMaxRange
from isobit.calibration.schemes.mse import MeanSquareError
from isobit.calibration.schemes.percentile import Percentile
from isobit.encodings.encoding import Encoding
from isobit.encodings.quant_spec import PerChannel, PerTensor, QuantSpec
from isobit.encodings.ranges import encode_range, encode_weight
from isobit.errors import IsobitError
from isobit.graph.sites import Site, Tensor
from isobit.placement.plan import Plan, constant_name
from isobit.statistics.histogram import Histogram
from isobit.statistics.statistics import Statistics
from isobit.targets.target import Target
from isobit.techniques.input_scaling.regions import Region, find_region
from isobit.techniques.layers.weighted_layer import LAYERS, bias_obstacle

#: A change that costs less is taken where it gains this part, in dB, of what the best one does.
_ENOUGH = 0.7

#: What a range may leave of the noise of a site whose range was wrong.
_MENDED = 0.1

#: Decibels of scatter from which on a prediction says that it is no more than likely.
_UNSURE = 0.25

#: Channels are told apart by at most so many octaves.
_OCTAVES = 12

#: Grids whose ends lie apart by less than this part of the width are one.
_ALIKE = 0.03

#: What is left of a sample's noise at least.
_LITTLE = 0.01

#: No prediction goes beyond: what is left then is the noise that was not looked at.
_MOST = 60.0


@dataclass(frozen=True, eq=False)
class Findings:
    """All that advice is made of."""

    model: CheckedModel
    plan: Plan
    target: Target
    statistics: Statistics
    noise: MeasuredNoise
    weights: Mapping[tuple[str, int], WeightNoise]
    worth: Worth
    total: float  # noise to signal at the output
    expected_without: Callable[[Mapping[str, Floats]], float]  # the same without shifts of layers, by a run in float


@dataclass(frozen=True, eq=False)
class _Option:
    change: Change
    what: str
    settings: str
    left: float  # how much of the site's share stays
    encodings: Mapping[Site, Encoding | None]
    bias: Mapping[str, Floats] | None = None
    gain: float | None = None  # in dB, where it does not follow from what is left


def advise(findings: Findings, error: SiteError, without: float | None) -> Advice | None:
    """The advice for one site; `without` is the noise at the output with it off, where that was measured."""
    options = list(_options(findings, error, is_run=without is not None))

    def gain(option: _Option) -> float:
        if option.gain is not None:
            return min(_MOST, option.gain)
        # Where the outputs are worse without it, its noise happens to undo that of others: nothing is to be gained.
        share = error.share if without is None else max(0.0, 1 - without / findings.total)
        left = 1 - (1 - option.left) * share
        return min(_MOST, -10 * math.log10(left)) if left > 0 else _MOST

    gains = [gain(option) for option in options]
    best = max(gains, default=0.0)
    if best < LEAST:
        return None
    chosen = next(i for i, value in enumerate(gains) if value >= _ENOUGH * best or _is_mended(error, options[i], value))
    option = options[chosen]
    scatter = error.scatter if option.gain is None else None
    # As much as the whole quantizer scatters, its part of the gain does too.
    about = "" if scatter is None or scatter < _UNSURE else f", give or take {scatter:.1f}"
    text = f"{describe(findings.model.graph, error)}; {option.what} would give {gains[chosen]:+.1f} dB{about}"
    return Advice(
        error.name,
        option.change,
        text,
        option.settings,
        gains[chosen],
        None,
        option.encodings,
        option.bias or {},
        scatter,
    )


def _is_mended(error: SiteError, option: _Option, gain: float) -> bool:
    """Whether a range was what is wrong, and another one leaves little of that: more bits would hide the mistake."""
    is_cause = error.cause in ("clipping", "wide range")
    return option.change == "range" and is_cause and option.left <= _MENDED and gain >= LEAST


def _options(findings: Findings, error: SiteError, is_run: bool) -> list[_Option]:
    """What can be done, the cheapest first; `is_run` says whether a run may tell what a shift does at the outputs."""
    makers: Sequence[Callable[[Findings, SiteError], _Option | None]] = (
        (_range, _activation_channels, _activation_bits)
        if error.kind == "activation"
        else (_bias, _weight_channels, _weight_bits)
    )
    options = [option for maker in makers if (option := maker(findings, error)) is not None]
    if is_run:
        options = [_by_run(findings, option) for option in options]
    name = error.name
    if error.kind != "activation" or not any(option.change == "16 bits" for option in options):
        settings = f"overrides={{{name!r}: None}}"
        off: dict[Site, Encoding | None] = dict.fromkeys(error.sites)
        options.append(_Option("float", "leaving it in float", settings, 0.0, off))
    return options


def left_with(findings: Findings, error: SiteError, encoding: Encoding) -> float | None:
    """How much of a site's share would be left with another grid; None where nothing was followed back to it."""
    before = after = 0.0
    for site in error.sites:
        noise, worth = findings.noise.at(site), findings.worth.sites.get(site)
        if noise is None or worth is None or worth.size != noise.channels:
            continue
        before += float((worth * noise.own).sum())
        after += float((worth * noise.moved_by(encoding)).sum())
    return after / before if before > 0 else None


def _left(findings: Findings, error: SiteError, encoding: Encoding) -> float:
    left = left_with(findings, error, encoding)
    return 1.0 if left is None else left


def _histogram(findings: Findings, error: SiteError) -> Histogram | None:
    """What was seen of the tensors of a grid: in calibration, or now where that left nothing."""
    total = Histogram(None)
    for site in error.sites:
        noise = findings.noise.at(site)
        seen = findings.statistics.get(Tensor(findings.plan.placements[site].tensor))
        if isinstance(seen, Histogram) and not seen.is_empty:
            total.limit = seen.limit
            total.join(seen)
        elif noise is not None and noise.values is not None:
            total.update(noise.values)
    return None if total.is_empty else total


def _range(findings: Findings, error: SiteError) -> _Option | None:
    placement = findings.plan.placements[error.sites[0]]
    spec, histogram = placement.spec, _histogram(findings, error)
    if histogram is None or not spec.is_integer or isinstance(spec.granularity, PerChannel) or placement.range_required:
        return None
    schemes: tuple[Calibrator, ...] = (MinMaxRange(), MeanSquareError(), Percentile(), Percentile(99.9))
    best: _Option | None = None
    for scheme in schemes:
        try:
            low, high = scheme.range(histogram, spec)
            encoding = encode_range(low, high, spec)
        except IsobitError:
            continue
        if _is_alike(encoding, error.grid):
            continue
        left = _left(findings, error, encoding)
        if best is None or left < best.left:
            grid = f"[{float(encoding.minimum):.4g}, {float(encoding.maximum):.4g}]"
            words = f"the range {grid} ({scheme.name}) in place of [{error.grid[0]:.4g}, {error.grid[1]:.4g}]"
            code = f"Encoding.of({str(spec)!r}, {float(encoding.scale):.7g}, {int(encoding.zero_point)})"
            settings = f"sim.load_encodings({{{error.sites[0]!r}: {code}}}, freeze=True)"
            best = _Option("range", words, settings, left, dict.fromkeys(error.sites, encoding))
    return best


def _is_alike(encoding: Encoding, grid: tuple[float, float]) -> bool:
    """Whether a grid is the old one but for a few hundredths of its width."""
    width = max(grid[1] - grid[0], float(encoding.maximum - encoding.minimum))
    moved = abs(float(encoding.minimum) - grid[0]) + abs(float(encoding.maximum) - grid[1])
    return moved < _ALIKE * width


def _activation_channels(findings: Findings, error: SiteError) -> _Option | None:
    """A scale for each channel, by powers of two: what BalanceChannels makes where factors can stand."""
    graph, placement = findings.model.graph, findings.plan.placements[error.sites[0]]
    noise, encoding = findings.noise.at(error.sites[0]), findings.model.encodings().get(error.sites[0])
    axis = graph.tensors[placement.tensor].channel_axis
    if noise is None or encoding is None or encoding.scale.ndim or axis is None or len(error.sites) > 1:
        return None
    if (
        not encoding.spec.is_integer
        or noise.channels < 2
        or not isinstance(find_region(graph, placement.tensor), Region)
    ):
        return None
    below = np.minimum(noise.low, 0.0) / min(float(encoding.minimum), -1e-30)
    above = np.maximum(noise.high, 0.0) / max(float(encoding.maximum), 1e-30)
    reached = np.clip(np.maximum(below, above), 2.0**-_OCTAVES, 1.0)
    scale = encoding.scale * np.exp2(-np.floor(-np.log2(reached)))
    spec = encoding.spec.with_granularity(PerChannel())
    grids = Encoding(spec, scale.astype(np.float32), np.full(scale.shape, encoding.zero_point), axis)
    words = f"a scale for each of its {noise.channels} channels (BalanceChannels)"
    return _Option(
        "channel grids", words, "sim.apply(isobit.techniques.BalanceChannels(), data=data)",
        _left(findings, error, grids), {error.sites[0]: grids},
    )  # fmt: skip


def _activation_bits(findings: Findings, error: SiteError) -> _Option | None:
    placement, histogram = findings.plan.placements[error.sites[0]], _histogram(findings, error)
    spec = _wider(placement.spec, findings.target.activation_types)
    if spec is None or histogram is None:
        return None
    encoding = encode_range(histogram.minimum, histogram.maximum, spec)
    settings = f"overrides={{{error.name!r}: {spec.type_name!r}}}"
    left = _left(findings, error, encoding)
    return _Option("16 bits", f"{spec.type_name}", settings, left, dict.fromkeys(error.sites, encoding))


def _wider(spec: QuantSpec, types: Sequence[str]) -> QuantSpec | None:
    """The same format with 16 bits, where the target has it."""
    if not spec.is_integer or spec.bits >= 16 or not isinstance(spec.granularity, PerTensor):
        return None
    for dtype in dict.fromkeys((spec.dtype, "uint", "int")):
        if f"{dtype}16" in types:
            return QuantSpec(dtype, 16, spec.symmetric if dtype == spec.dtype else dtype == "int", False, PerTensor())
    return None


def _read_by(findings: Findings, error: SiteError) -> list[tuple[tuple[str, int], WeightNoise]]:
    return [(key, item) for key, item in findings.weights.items() if item.site in error.sites]


def _bias(findings: Findings, error: SiteError) -> _Option | None:
    graph, shifts, change = findings.model.graph, {}, np.zeros(1)
    for key, item in _read_by(findings, error):
        node = graph.node(key[0])
        if key[1] == 1 and node.op in LAYERS and item.shift is not None and not bias_obstacle(graph, node):
            shifts[node.name] = -item.shift
            change = change + _changed_by(findings, node.outputs[0], -item.shift)
    if not shifts or error.share <= 0:
        return None
    gain = float(np.mean(-10 * np.log10(np.maximum(1 + change, _LITTLE))))
    settings = "sim.apply(isobit.techniques.CorrectBias(), data=data)"
    return _Option("bias", "correcting the bias", settings, 1.0, {}, shifts, gain)


def _by_run(findings: Findings, option: _Option) -> _Option:
    """A shift adds up where rounding averages out: a run tells what that of an inner layer does at the outputs."""
    if not option.bias:
        return option
    left = findings.expected_without({layer: -step for layer, step in option.bias.items()})
    return replace(option, gain=gain_of(findings.total, left))


def _changed_by(findings: Findings, tensor: str, step: Floats) -> Floats:
    """By sample, how much the noise of the outputs changes, as a part of it, by a step of the bias behind a tensor.

    Errors e become e + step, so that their squares change by step (2 e + step): less where e is this weight's shift,
    more where what comes in made up for it. Each sample counts alike in dB, and what helps some may do harm to others.
    """
    noise, worth = findings.noise.tensors.get(tensor), findings.worth.sites.get(Tensor(tensor))
    if noise is None or noise.errors is None or noise.counts is None or worth is None or worth.size != step.size:
        return np.zeros(1)
    return np.asarray(noise.counts / noise.counts.mean() * ((step * (2 * noise.errors + step)) @ worth))


def _weight_channels(findings: Findings, error: SiteError) -> _Option | None:
    placement, graph = findings.plan.placements[error.sites[0]], findings.model.graph
    granularity = placement.spec.granularity
    readers = {graph.node(name).op for (name, _), _ in _read_by(findings, error)}
    allowed = "per-channel" in findings.target.weight_granularities and readers <= findings.target.per_channel_ops
    if not allowed or not readers or not isinstance(granularity, PerTensor) or error.share <= 0:
        return None
    spec = placement.spec.with_granularity(PerChannel())
    weight = findings.model.weight(constant_name(graph, placement.site))
    if weight.ndim < 2:
        return None
    encoding = encode_weight(weight, spec, channel_axis=placement.channel_axis)
    return _Option(
        "channel grids",
        f"a scale for each of its {error.channels} channels",
        f"overrides={{{error.name!r}: '{spec.type_name} per-channel'}}",
        1 - error.causes.get("channel spread", 0.0) / error.share,
        {placement.site: encoding},
    )


def _weight_bits(findings: Findings, error: SiteError) -> _Option | None:
    placement = findings.plan.placements[error.sites[0]]
    spec, granularity = placement.spec, placement.spec.granularity
    if not spec.is_integer or spec.bits >= 16 or not isinstance(granularity, PerTensor | PerChannel):
        return None
    bits = next((n for n in (8, 16) if n > spec.bits and f"{spec.dtype}{n}" in findings.target.weight_types), None)
    if bits is None:
        return None
    wider = QuantSpec(spec.dtype, bits, spec.symmetric, False, granularity)
    weight = findings.model.weight(constant_name(findings.model.graph, placement.site))
    encoding = encode_weight(weight, wider, channel_axis=placement.channel_axis, block_axis=placement.block_axis)
    change: Change = "16 bits"
    return _Option(
        change, wider.type_name, f"overrides={{{error.name!r}: {wider.type_name!r}}}",
        4.0 ** (spec.bits - bits), {placement.site: encoding},
    )  # fmt: skip


def gain_of(total: float, changed: float) -> float:
    """What a change gained, in dB."""
    return decibels(total, changed) if changed > 0 else _MOST
