"""Balancing channels: powers of two make the channels that one grid rounds alike in size, and the function stays.

Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, section 4.1,
for factors between layers; here they are those of activations, chosen by the error behind the layers that read them,
and stand at curves too, which no factor passes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from isobit.backend.checked_model import CheckedModel
from isobit.edits.draft import Draft
from isobit.edits.edit import SetWeights
from isobit.errors import FormatError
from isobit.graph.graph import Graph
from isobit.placement.plan import Plan
from isobit.statistics.channel_moments import ChannelMoments
from isobit.techniques.context import Requests, TechniqueContext
from isobit.techniques.input_scaling.carriers import divide
from isobit.techniques.input_scaling.mul_time import elements, network_elements
from isobit.techniques.input_scaling.places import Place, find_places, insert_factors, moment_requests
from isobit.techniques.input_scaling.powers_of_two import MOST_OCTAVES, Exponents, best_exponents
from isobit.techniques.input_scaling.region_error import RegionError
from isobit.techniques.layers.weighted_layer import Floats, by_input, groups_of
from isobit.techniques.technique import TechniqueReport

#: Of fewer values a channel, as behind global pooling, the range says too little of what new data will reach.
_FEWEST = 256

#: The smallest positive float32 that has all its bits.
_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class BalanceChannels:
    """Multiply channels of activations by powers of two that make them alike in size, and divide the next weights.

    One grid serves all channels of an activation, and a small channel has few of its levels; kernels of integers take
    no scale by channel. The factors go into constants of what computes the tensor (a layer, a norm, Mul and Add by
    constants), through Relu, pooling and products, or into a Mul behind a curve such as HardSwish. The layers that read
    it take them out in their weights, whose integers stay where an output has a scale and one input (depthwise). Before
    a curve a layer takes them in, and a Mul takes them out. Powers of two keep every bit of the float function.

    Factors and places are chosen by the error that the roundings of activations and weights are expected to make behind
    those layers, on new data too, from ranges and moments by channel: one pass. What costs nothing must lower it by
    `gain` dB; a Mul by `mul_gain` dB, and by `mul_share` of the error to signal of the middle one of all places.
    ``muls=False`` adds none; all of them together take at most about `mul_time` of the network's time, those first that
    remove most error for it.
    """

    muls: bool = True
    mul_gain: float = 3.0
    mul_share: float = 0.5
    mul_time: float = 1.0
    gain: float = 0.1

    def __post_init__(self) -> None:
        for name in ("gain", "mul_gain"):
            if not getattr(self, name) >= 0:
                raise FormatError(f"{name} is a number of decibels, 0 or more, not {getattr(self, name)!r}")
        if not 0 <= self.mul_share <= 1:
            raise FormatError(f"mul_share lies between 0 and 1, not {self.mul_share!r}")
        if not self.mul_time >= 0:
            raise FormatError(f"mul_time is a share of the network's time, 0 or more, not {self.mul_time!r}")

    @property
    def uses_data(self) -> bool:
        """Always."""
        return True

    def requests(self, context: TechniqueContext) -> Requests:
        """Ranges and moments of the channels of each tensor that could be balanced."""
        return moment_requests(self._places(context)[0])

    def apply(self, context: TechniqueContext) -> TechniqueReport:
        """Balance every tensor where it pays."""
        places, left = self._places(context)
        if not places:
            nothing = {"model": "no layer reads a tensor of channels that one grid rounds"}
            return TechniqueReport("BalanceChannels", (), left or nothing)
        requests = moment_requests(places)
        seen = context.observe(requests).float
        moments = {str(request.site): item for request, item in zip(requests.float, seen, strict=True)}
        choice = _Choice(self, context.model, context.plan, moments, left)
        choice.make(places)
        draft = Draft(context.graph, context.model.weight)
        for place, exponents in choice.chosen:
            _enlarge(draft, place, exponents)
        if draft.edits:
            context.model.edit(draft)
        touched = frozenset(name for place, _ in choice.chosen for name in (*place.region.tensors, *place.between))
        return TechniqueReport("BalanceChannels", tuple(choice.changed), choice.left, touched=touched)

    def _places(self, context: TechniqueContext) -> tuple[list[Place], dict[str, str]]:
        return find_places(context, muls=self.muls)


# --- which ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Gain:
    """What a place would gain: `removed` is of the error to signal, and `line` says it in the report."""

    place: Place
    exponents: Exponents
    removed: float
    line: str


@dataclass
class _Choice:
    """Weighs the places against each other. `left` and `changed` are for the report."""

    settings: BalanceChannels
    model: CheckedModel
    plan: Plan
    moments: Mapping[str, ChannelMoments]
    left: dict[str, str]
    chosen: list[tuple[Place, Exponents]] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)

    def make(self, places: list[Place]) -> None:
        """Decide for each place."""
        errors = {}
        for place in places:
            names = [*place.region.tensors, *place.between, *(place.behind.tensors if place.behind else ())]
            count = self.moments[place.region.start].count
            if not all(self.moments[name].is_finite for name in names):
                self.left[place.region.name] = "it holds NaN or infinity, or nothing"
            elif count < _FEWEST:
                self.left[place.region.name] = f"data of {count} values a channel are too few, of {_FEWEST}"
            else:
                errors[place] = self._error(place)
        typical = float(np.median([error.to_signal(error.plain) for error in errors.values()] or [0.0]))
        gains = []
        for place, error in errors.items():
            gain = self._gain(place, error, typical)
            if isinstance(gain, str):
                self.left[place.region.name] = gain
            else:
                gains.append(gain)
        self._take(gains)

    def _take(self, gains: list[_Gain]) -> None:
        """What costs nothing, then the Muls that remove most error for their time, none twice for one tensor."""
        graph, taken = self.model.graph, set[str]()
        time_left = self.settings.mul_time * network_elements(graph, self.plan)
        costs = {gain: elements(graph, gain.place.region.start) if gain.place.has_mul else 0 for gain in gains}
        chosen = set[_Gain]()
        for gain in sorted(gains, key=lambda gain: -gain.removed / costs[gain] if costs[gain] else -math.inf):
            place = gain.place
            if not taken.isdisjoint((*place.region.tensors, *place.between)):
                self.left[place.region.name] = "what it is made of is balanced already"
            elif costs[gain] > time_left:
                self.left[place.region.name] = "a Mul would take more time than is allowed for all of them"
            else:
                taken.update(place.region.tensors)
                time_left -= costs[gain]
                chosen.add(gain)
        for gain in gains:  # in the order of the graph
            if gain in chosen:
                self.chosen.append((gain.place, gain.exponents))
                self.changed.append(gain.line)

    def _error(self, place: Place) -> RegionError:
        between = place.between
        if place.behind is None:
            return RegionError.behind(self.model, self.plan, place.region, self.moments, between)
        behind = RegionError.behind(self.model, self.plan, place.behind, self.moments)
        return behind.before_curve(self.model.graph, self.plan, place.region, self.moments, between)

    def _gain(self, place: Place, error: RegionError, typical: float) -> _Gain | str:
        """What a place would gain, or why it is left alone."""
        start = error.parts[0]
        low, high = (np.clip(end, *start.bounds) for end in (start.moments.minimum, start.moments.maximum))
        room = _room(self.model, place, low.size)
        exponents, least = best_exponents(low, high, lambda rows: error.after(rows, weights=False), error.after, room)
        if not exponents.any() or not least < error.plain:
            return "its channels are alike"
        gain = 10 * math.log10(error.plain / least) if least > 0 else math.inf
        removed = error.to_signal(error.plain) - error.to_signal(least)
        wanted = self.settings.mul_gain if place.has_mul else self.settings.gain
        if gain < wanted:
            return f"it would gain {gain:.1f} dB" + (" by a Mul" if place.has_mul else "")
        if place.has_mul and removed < self.settings.mul_share * typical:
            return f"a Mul would gain {gain:.1f} dB, but of an error that is small beside that of other layers"
        return _Gain(place, exponents, removed, self._described(place, error, least, exponents))

    def _described(self, place: Place, error: RegionError, least: float, exponents: Exponents) -> str:
        """Gain and cost, for the report."""
        curve = [] if place.region.curve is None else [place.region.curve]
        behind = ", ".join(node.name for node in (*place.region.layers, *curve))
        ratios = " to ".join(_decibels(error.to_signal(value)) for value in (error.plain, least))
        carrier = "a Mul" if place.carrier is None else place.carrier.name
        cost = f"a Mul of {_elements(self.model.graph, place)}" if place.has_mul else "nothing"
        return (
            f"{place.region.name}: error behind {behind} from {ratios}, factors up to 2^{int(exponents.max())} in "
            f"{carrier}, costs {cost}"
        )


def _decibels(ratio: float) -> str:
    return f"{10 * math.log10(max(ratio, 1e-30)):.1f} dB"


def _elements(graph: Graph, place: Place) -> str:
    """How many values of one sample a Mul multiplies, where the sizes are known."""
    sizes = (graph.tensors[place.region.start].shape or ())[1:]
    known = math.prod(size for size in sizes if isinstance(size, int))
    return f"{known:,} values" if all(isinstance(size, int) for size in sizes) else f"{known:,} values a position"


def _room(model: CheckedModel, place: Place, channels: int) -> Exponents:
    """By how many octaves each channel may grow: no weight leaves the range where float32 has all its bits."""
    room = np.full(channels, MOST_OCTAVES, np.int64)
    for node in place.region.layers:
        weight = np.abs(model.weight(node.inputs[1] or ""))
        weight[weight == 0] = np.inf
        taps = weight.reshape(*weight.shape[:2], -1)
        smallest = np.minimum.reduce([taps[..., tap] for tap in range(taps.shape[2])])  # min(axis=2) takes longer
        by_group = smallest.reshape(groups_of(node), -1, weight.shape[1]).min(axis=1).reshape(-1)
        room = np.minimum(room, _octaves(by_group.astype(np.float64) / _TINY))
    if place.carrier is not None:
        carried = [name for node in (place.carrier.source, *place.carrier.terms) for name in node.inputs]
        for name in carried:
            if name is not None and name in model.graph.weights:
                largest = float(np.abs(model.weight(name)).max(initial=0.0))
                room = np.minimum(room, _octaves(np.array(float(np.finfo(np.float32).max) / max(largest, _TINY))))
    return np.maximum(room, 0)


def _octaves(ratio: Floats) -> Exponents:
    return np.floor(np.minimum(np.log2(np.maximum(ratio, _TINY)), MOST_OCTAVES)).astype(np.int64)


# --- the change -------------------------------------------------------------------------------------------------------


def _enlarge(draft: Draft, place: Place, exponents: Exponents) -> None:
    """Multiply the channels of a region by powers of two, and undo it at its end."""
    factors = np.exp2(-exponents.astype(np.float64))
    for layer in place.region.layers:
        weight = layer.inputs[1] or ""
        value = draft.value(weight)
        draft.apply(SetWeights({weight: value * by_input(value, groups_of(layer), factors.astype(np.float32))}))
    if place.carrier is not None:
        divide(draft, place.carrier, factors)
    if place.has_mul:
        insert_factors(draft, place, exponents if place.region.curve is None else -exponents)
