"""From a plan, statistics and weights to encodings: the last decision before a backend gets them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from isobit.calibration.fitting import unseen_groups
from isobit.calibration.range_memo import RangeMemo
from isobit.calibration.reader_functions import Function, reader_functions
from isobit.calibration.scheme import (
    Calibrator,
    Channelwise,
    HasPlainScheme,
    HasSchemeBehind,
    Noting,
    SeesReaders,
)
from isobit.calibration.shared_grid import together
from isobit.edits.edit import ReadWeight
from isobit.encodings.encoding import Encoding, Encodings
from isobit.encodings.quant_spec import PerChannel, PerTensor, QuantSpec
from isobit.encodings.ranges import encode_range, encode_weight
from isobit.encodings.relations import product_scale
from isobit.errors import EncodingError, FormatError
from isobit.graph.graph import Graph
from isobit.graph.sites import Site, Tensor
from isobit.placement.plan import Placement, Plan, constant_name
from isobit.statistics.histogram import Histogram
from isobit.statistics.statistics import Statistics

logger = logging.getLogger(__name__)

#: int32 biases stay below half of the accumulator: |bias| <= 2**30 steps.
_BIAS_STEPS = float(2**30)

#: An observed range of so much of the known one is used in its place.
_MUCH_SMALLER = 0.5

_NONE: Mapping[Site, Encoding] = {}


@dataclass(frozen=True)
class Resolved:
    """Encodings of every placement, and what had to be adjusted, in words."""

    encodings: Encodings
    notes: tuple[str, ...] = ()


def resolve_activations(
    plan: Plan,
    statistics: Statistics,
    calibrator: Calibrator,
    *,
    snap: bool = True,
    frozen: Mapping[Site, Encoding] = _NONE,
    functions: Mapping[str, Function] | None = None,
    memo: RangeMemo | None = None,
) -> dict[Site, Encoding]:
    """Encodings of the activations: one for each group, from all that was seen of its members.

    A group of which nothing was seen has none. `functions` are what reads each group, by its name. `memo` remembers
    the ranges that were chosen.
    """
    memo = RangeMemo() if memo is None else memo
    schemes = _Schemes.of(calibrator)
    encodings: dict[Site, Encoding] = {}
    unseen = {members[0].group for members in unseen_groups(plan, statistics)}
    for group, members in plan.groups().items():
        frozen_encoding = next((frozen[member.site] for member in members if member.site in frozen), None)
        if frozen_encoding is None and group in unseen:
            continue
        encoding = frozen_encoding or _group_encoding(
            members, statistics, schemes, snap, (functions or {}).get(group), memo
        )
        encodings.update(dict.fromkeys((member.site for member in members), encoding))
    return encodings


class _Schemes(NamedTuple):
    """What a scheme is for tensors of whose readers nothing is known, and as it was named."""

    elsewhere: Calibrator
    named: Calibrator

    @classmethod
    def of(cls, calibrator: Calibrator) -> _Schemes:
        elsewhere = calibrator.elsewhere if isinstance(calibrator, HasPlainScheme) else calibrator
        return cls(elsewhere, calibrator)

    def for_reader(self, function: Function | None, spec: QuantSpec) -> Calibrator:
        """What it is for a tensor that this function reads, or of whose readers nothing is known."""
        if function is None:
            return self.elsewhere
        return self.named.behind(spec) if isinstance(self.named, HasSchemeBehind) else self.named


@lru_cache(maxsize=4096)
def _encoded(low: float, high: float, spec: QuantSpec, snap: bool) -> Encoding:
    """`encode_range`: schemes give many tensors the same range, and each gives it again before and behind a step."""
    return encode_range(low, high, spec, snap=snap)


def _group_encoding(
    members: Sequence[Placement],
    statistics: Statistics,
    schemes: _Schemes,
    snap: bool,
    function: Function | None,
    memo: RangeMemo,
) -> Encoding:
    first = members[0]
    if first.fixed_range is not None and not _gives_way(members, first.fixed_range, statistics):
        return encode_range(*first.fixed_range, first.spec, snap=False)
    if first.spec.type_name in ("float16", "bfloat16"):
        return encode_range(0.0, 0.0, first.spec)
    observed = dict.fromkeys(member.tensor for member in members if member.simulated)
    if isinstance(first.spec.granularity, PerChannel):
        return _channel_encoding(first, statistics, schemes.named, snap)
    histograms = [statistics.histogram(Tensor(name)) for name in _seen(observed, statistics)]
    calibrator = schemes.for_reader(function, first.spec)
    if not histograms:
        raise EncodingError(f"no tensor of the group of {str(first.site)!r} is observed")

    def choose() -> tuple[float, float]:
        if function is not None and isinstance(calibrator, SeesReaders):
            return calibrator.range_behind(together(histograms, calibrator), first.spec, function)
        return calibrator.range(together(histograms, calibrator), first.spec)

    try:
        low, high = memo.range(calibrator, first.spec, function, histograms, choose)
        logger.debug("%s: %s represents %g to %g as %s", first.group, calibrator.name, low, high, first.spec)
        return _encoded(float(low), float(high), first.spec, snap)
    except EncodingError as error:
        raise EncodingError(f"tensor {str(first.site)!r}: {error}") from error


def _gives_way(members: Sequence[Placement], fixed: tuple[float, float], statistics: Statistics) -> bool:
    """Whether a range that is known of an operation is at least twice as wide as what the data shows of it.

    The probabilities of a long attention lie far below 1: each halving gains 6 dB there.
    """
    if any(member.range_required or isinstance(member.spec.granularity, PerChannel) for member in members):
        return False
    reducers = [statistics.get(Tensor(member.tensor)) for member in members if member.simulated]
    seen = [reducer for reducer in reducers if isinstance(reducer, Histogram) and not reducer.is_empty]
    if not seen:
        return False
    widest = max(max(reducer.maximum, 0.0) - min(reducer.minimum, 0.0) for reducer in seen)
    return widest <= _MUCH_SMALLER * (fixed[1] - fixed[0])


def _seen(names: Collection[str], statistics: Statistics) -> Collection[str]:
    """The tensors of a group without those that the data never reached, or all where it reached none."""
    reducers = {name: statistics.get(Tensor(name)) for name in names}
    return [n for n, r in reducers.items() if not isinstance(r, Histogram) or not r.is_empty] or names


def _channel_encoding(placement: Placement, statistics: Statistics, calibrator: Calibrator, snap: bool) -> Encoding:
    if not isinstance(calibrator, Channelwise):
        raise FormatError(
            f"tensor {placement.tensor!r} has one scale a channel, which method {calibrator.name!r} has no ranges for: "
            "use minmax or mse"
        )
    low, high = calibrator.channel_range(statistics.channels(Tensor(placement.tensor)), placement.spec)
    return encode_range(low, high, placement.spec, axis=placement.channel_axis, snap=snap)


def _scheme_notes(plan: Plan, calibrator: Calibrator, frozen: Mapping[Site, Encoding]) -> list[str]:
    """What the scheme does otherwise than its name says, for the formats that it decides about."""
    if not isinstance(calibrator, Noting):
        return []
    decided = [p.spec for p in plan.of_kind("activation") if p.fixed_range is None and p.site not in frozen]
    notes = [calibrator.note(spec) for spec in dict.fromkeys(decided) if spec.type_name not in ("float16", "bfloat16")]
    return [note for note in dict.fromkeys(notes) if note]


def resolve_weights(
    graph: Graph, plan: Plan, read: ReadWeight, *, frozen: Mapping[Site, Encoding] = _NONE
) -> dict[Site, Encoding]:
    """Encodings of weights and other constants, from their values alone."""
    encodings: dict[Site, Encoding] = {}
    for placement in (*plan.of_kind("weight"), *plan.of_kind("constant")):
        if placement.site in frozen:
            encodings[placement.site] = frozen[placement.site]
            continue
        name = constant_name(graph, placement.site)
        try:
            encodings[placement.site] = encode_weight(
                read(name), placement.spec, channel_axis=placement.channel_axis, block_axis=placement.block_axis
            )
        except EncodingError as error:
            raise EncodingError(f"weight {name!r}: {error}") from error
    return encodings


def resolve(
    graph: Graph,
    plan: Plan,
    statistics: Statistics,
    calibrator: Calibrator,
    read: ReadWeight,
    *,
    snap: bool = True,
    frozen: Mapping[Site, Encoding] | None = None,
    memo: RangeMemo | None = None,
    weights: Mapping[Site, Encoding] | None = None,
) -> Resolved:
    """Encodings of the whole plan: activations, weights, then the biases whose scales follow from both.

    What is `frozen` is taken as it is, for all members of a group, and asks for no statistics. `memo` remembers the
    ranges of activations from one call to the next. `weights` are what `resolve_weights` makes of the same plan,
    weights and frozen encodings, where that is at hand: it is the same for all schemes.
    """
    fixed = dict(frozen or {})
    functions = reader_functions(graph, plan) if isinstance(calibrator, SeesReaders) else None
    encodings = resolve_activations(
        plan, statistics, calibrator, snap=snap, frozen=fixed, functions=functions, memo=memo
    )
    encodings.update(resolve_weights(graph, plan, read, frozen=fixed) if weights is None else weights)
    notes = _scheme_notes(plan, calibrator, fixed)
    biases = [placement for placement in plan.of_kind("bias") if placement.site not in fixed]
    biases = [p for p in biases if p.scale_of is not None and all(site in encodings for site in p.scale_of)]
    for placement in biases:
        note = _make_room_for_bias(graph, placement, encodings, read, fixed)
        if note:
            notes.append(note)
    for placement in biases:  # only after all weight scales are final: several biases may share a weight
        encodings[placement.site] = bias_encoding(placement, encodings)
    encodings.update((site, encoding) for site, encoding in fixed.items() if site in plan.placements)
    ordered = {site: encodings[site] for site in plan.placements if site in encodings}
    logger.info("resolved %d encodings, of which %d were frozen", len(ordered), len(fixed.keys() & ordered.keys()))
    for note in notes:
        logger.info("%s", note)
    return Resolved(Encodings(ordered), tuple(notes))


def bias_encoding(placement: Placement, encodings: Mapping[Site, Encoding]) -> Encoding:
    """The encoding of an int32 bias: input scale times weight scale."""
    assert placement.scale_of is not None  # every bias placement says where its scale comes from
    source, weight = (encodings[site] for site in placement.scale_of)
    scale = product_scale(source, weight)
    axis = None if isinstance(placement.spec.granularity, PerTensor) else 0
    return Encoding(placement.spec, scale, np.zeros(scale.shape, np.int32), axis)


def _make_room_for_bias(
    graph: Graph,
    placement: Placement,
    encodings: dict[Site, Encoding],
    read: ReadWeight,
    frozen: Mapping[Site, Encoding],
) -> str | None:
    """Raise the weight scale of channels whose bias would not fit into 2**30 steps of int32; not a frozen one."""
    assert placement.scale_of is not None
    source, weight_site = encodings[placement.scale_of[0]], placement.scale_of[1]
    weight = encodings[weight_site]
    bias = np.abs(read(constant_name(graph, placement.site)).astype(np.float64))
    needed = bias / (_BIAS_STEPS * source.scale.astype(np.float64))
    if weight.scale.ndim == 0:
        needed = needed.max(initial=0.0)
    if not np.any(needed > weight.scale):
        return None
    if weight_site in frozen:
        return f"weight {str(weight_site)!r}: its encoding is frozen, so a bias of its node may not fit into int32"
    # Rounded up: the nearest float32 below would leave the bias just outside.
    raised = np.nextafter(np.maximum(weight.scale, needed).astype(np.float32), np.float32(np.inf))
    scale = np.where(needed > weight.scale, raised, weight.scale)
    encodings[weight_site] = Encoding(weight.spec, scale, _kept_zero_point(weight, scale), weight.axis)
    count = int(np.count_nonzero(needed > weight.scale))
    return f"weight {str(weight_site)!r}: the scale of {count} channel(s) was raised so that the int32 bias fits"


def _kept_zero_point(weight: Encoding, scale: NDArray[np.float32]) -> NDArray[np.int32]:
    if weight.spec.symmetric:
        return weight.zero_point
    low = weight.minimum.astype(np.float64)
    position = weight.spec.q_min + np.rint(-low / scale)
    return np.asarray(np.clip(position, weight.spec.q_min, weight.spec.q_max), np.int32)


def resolver(
    graph: Graph,
    plan: Plan,
    statistics: Statistics,
    read: ReadWeight,
    *,
    frozen: Mapping[Site, Encoding],
    memo: RangeMemo,
) -> Callable[[Calibrator], Resolved]:
    """`resolve` by whatever scheme is asked for: the grids of weights, the same for all, are made once."""
    weights = resolve_weights(graph, plan, read, frozen=frozen)
    return lambda scheme: resolve(graph, plan, statistics, scheme, read, frozen=frozen, memo=memo, weights=weights)
