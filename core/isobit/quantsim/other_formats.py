"""The same simulator with other formats for some of its tensors and weights, from what was observed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from isobit.calibration.fitting import fit
from isobit.calibration.resolve import resolve
from isobit.calibration.schemes.minmax import MinMaxRange
from isobit.calibration.schemes.mse import MeanSquareError
from isobit.encodings.encoding import Encoding, Encodings
from isobit.encodings.quant_spec import QuantSpec
from isobit.errors import DataError
from isobit.graph.sites import Site
from isobit.placement.plan import Plan, constant_name
from isobit.placement.quant_config import QuantConfig
from isobit.quantsim.simulation import Simulation
from isobit.statistics.channel_range import ChannelRange
from isobit.statistics.histogram import Histogram

#: Bits from which a range is all that was seen: there rounding is far below what clipping costs.
_WIDE = 12


def with_overrides(simulation: Simulation, overrides: Mapping[str, str | None]) -> Simulation:
    """A copy of a calibrated simulation with further overrides (`QuantConfig.overrides`); nothing is run.

    What keeps its format keeps its encoding; the rest is set by the statistics. What made up for the rounding of a
    weight that has another format now is taken back. Raises DataError without statistics.
    """
    other = simulation.copy()
    config, plan, kept = _placed(simulation, overrides)
    _take_back(other, plan, kept)
    resolved = resolve(other.graph, plan, other.statistics, _ByWidth(), other.model.weight, frozen=kept)
    other.notes.update(dict.fromkeys(resolved.notes))
    other.adopt(plan, config, resolved.encodings, simulation.calibration or "")
    return other


def encodings_with(simulation: Simulation, overrides: Mapping[str, str | None]) -> Encodings:
    """The encodings of that copy, without making it."""
    _, plan, kept = _placed(simulation, overrides)
    resolved = resolve(simulation.graph, plan, simulation.statistics, _ByWidth(), simulation.model.weight, frozen=kept)
    return resolved.encodings


def _placed(
    simulation: Simulation, overrides: Mapping[str, str | None]
) -> tuple[QuantConfig, Plan, dict[Site, Encoding]]:
    """The config, the plan, and the encodings of all that keeps its format."""
    if not len(simulation.statistics):
        raise DataError(
            "the simulator holds encodings and no statistics, so that other formats have no ranges: calibrate it first"
        )
    config = replace(simulation.config, overrides={**(simulation.config.overrides or {}), **overrides})
    graph, encodings = simulation.graph, simulation.encodings
    plan = simulation.place(graph, config)
    placed = {placement.tensor for placement in simulation.plan.of_kind("activation")}
    # What a target keeps in float for its time runs on integers where a format names it: its neighbours stay in float.
    new = {placement.tensor: None for placement in plan.of_kind("activation") if placement.tensor not in placed}
    if new:
        config = replace(config, overrides={**(config.overrides or {}), **new})
        plan = simulation.place(graph, config)
    apart = fit(graph, plan, simulation.statistics, simulation.frozen).apart
    if apart:
        plan = simulation.place(graph, config, apart)
    before = simulation.plan.placements
    kept = {
        site: encodings[site]
        for site, placement in plan.placements.items()
        if placement.kind != "bias" and site in encodings and site in before and before[site].spec == placement.spec
    }
    return config, plan, kept


@dataclass(frozen=True)
class _ByWidth:
    """All that was seen where there are bits enough for it, the least error where there are few."""

    name = "by width"

    def range(self, histogram: Histogram, spec: QuantSpec) -> tuple[float, float]:
        """Minimum and maximum to represent."""
        return _scheme(spec).range(histogram, spec)

    def channel_range(self, channels: ChannelRange, spec: QuantSpec) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Minimum and maximum to represent in each channel."""
        return _scheme(spec).channel_range(channels, spec)

    @classmethod
    def from_text(cls, value: str | None) -> _ByWidth:
        """It has no setting."""
        return cls()


def _scheme(spec: QuantSpec) -> MinMaxRange | MeanSquareError:
    return MinMaxRange() if spec.bits >= _WIDE or not spec.is_integer else MeanSquareError()


def _take_back(simulation: Simulation, plan: Plan, kept: Mapping[Site, Encoding]) -> None:
    """Undo the corrections of the biases of layers whose weight is rounded otherwise now, or not at all."""
    graph = simulation.graph
    same = {constant_name(graph, site) for site in kept if plan.placements[site].kind == "weight"}
    odd = [
        name
        for name in simulation.model.compensations
        if any(use.role == "bias" and use.node.input(1) not in same for use in graph.uses(name))
    ]
    if odd:
        simulation.model.take_back(odd)
