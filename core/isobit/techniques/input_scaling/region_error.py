"""The expected error behind a region of tensors that take the same factors, from what was seen of each of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from isobit.backend.checked_model import CheckedModel
from isobit.graph.graph import Graph, Node
from isobit.graph.sites import Input, Site, Tensor
from isobit.placement.plan import Placement, Plan
from isobit.statistics.channel_moments import ChannelMoments
from isobit.techniques.input_scaling.expected_error import ExpectedError, quantized_weights
from isobit.techniques.input_scaling.powers_of_two import Exponents
from isobit.techniques.input_scaling.regions import Region
from isobit.techniques.input_scaling.rescaling import Rescaling
from isobit.techniques.layers.weighted_layer import Floats, groups_of, summed_by_input

#: Beyond these values a curve is flat, or nearly: what is lost there nobody sees.
_FLAT: Mapping[str, tuple[float, float]] = {
    "HardSwish": (-3.0, np.inf),
    "HardSigmoid": (-3.0, 3.0),
    "Swish": (-8.0, np.inf),
    "Gelu": (-4.0, np.inf),
    "Mish": (-8.0, np.inf),
    "Elu": (-5.0, np.inf),
    "Sigmoid": (-8.0, 8.0),
    "Tanh": (-4.0, 4.0),
}


def activation_placement(graph: Graph, plan: Plan, tensor: str, region: Region) -> Placement | None:
    """How a tensor is rounded for its readers, or for those of a region alone; None where it stays in float."""
    uses = region.entries if tensor == region.start else graph.uses(tensor)
    sites: list[Site] = [Tensor(tensor), *(Input(use.node.name, use.index) for use in uses)]
    return next((plan.placements[site] for site in sites if site in plan.placements), None)


@dataclass(frozen=True, eq=False)
class RegionError:
    """The expected squared error of one position of the layers' outputs, and their variance.

    `parts` are the tensors that are rounded. Channels are taken as independent in `signal`.
    """

    parts: tuple[ExpectedError, ...]
    signal: float
    energy: Floats  # squared weights behind each channel of the start

    @classmethod
    def behind(
        cls,
        model: CheckedModel,
        plan: Plan,
        region: Region,
        moments: Mapping[str, ChannelMoments],
        between: Iterable[str] = (),
    ) -> RegionError:
        """For a region with layers; `between` are tensors before its start that take the factors too."""
        own = {tensor: [node for node, read in region.readers if read == tensor] for tensor in region.tensors}
        squares = {node: _squared_weights(model, node) for nodes in own.values() for node in nodes}
        energies: dict[str, Floats] = {}
        for tensor in reversed(region.tensors):
            energy = np.zeros(moments[region.start].minimum.size)
            for node in own[tensor]:
                energy = energy + squares[node]
            for step in region.steps:
                if step.source == tensor:
                    energy = energy + step.share * energies[step.target]
            energies[tensor] = energy
        parts, signal = [], 0.0
        for tensor in (*region.tensors, *between):
            seen = moments[tensor]
            energy = energies.get(tensor, energies[region.start])
            layers = own.get(tensor, [])
            placement = activation_placement(model.graph, plan, tensor, region)
            parts.append(
                ExpectedError(seen, placement, tuple(quantized_weights(model, plan, layers)), energy, to_zero=True)
            )
            for node in layers:
                signal += float((squares[node] * _variance(seen)).sum())
        return cls(tuple(parts), signal, energies[region.start])

    def before_curve(
        self,
        graph: Graph,
        plan: Plan,
        region: Region,
        moments: Mapping[str, ChannelMoments],
        between: Iterable[str] = (),
    ) -> RegionError:
        """For the region that ends at a curve whose result begins this one: noise passes the curve as it is."""
        bounds = _FLAT.get("" if region.curve is None else region.curve.op, (-np.inf, np.inf))
        if region.curve is not None and region.curve.op == "Clip":
            bounds = tuple(region.curve.attributes.get(key, end) for key, end in (("min", -np.inf), ("max", np.inf)))
        parts = [
            ExpectedError(moments[name], activation_placement(graph, plan, name, region), (), self.energy, bounds, True)
            for name in (region.start, *between)
        ]
        return RegionError(tuple(parts), self.signal, self.energy)

    @cached_property
    def plain(self) -> float:
        """The error as it is."""
        return float(self.after(np.zeros((1, self.energy.size), np.int64))[0])

    def to_signal(self, error: float) -> float:
        """An error over error and signal, 0 to 1, for an input that never changes gives no signal."""
        return error / (error + self.signal) if error > 0 else 0.0

    def after(self, exponents: Exponents, *, weights: bool = True) -> Floats:
        """The error with the channels enlarged by powers of two, for each row of exponents."""
        factors = np.exp2(-exponents.astype(np.float64))
        changes = [Rescaling(row, np.zeros_like(row)) for row in factors]
        parts = self.parts if weights else [part.without_weights() for part in self.parts]
        return np.asarray(np.sum([part.after(changes) for part in parts], axis=0))


def _squared_weights(model: CheckedModel, layer: Node) -> Floats:
    """The squared weights that read each input channel of a layer, summed."""
    squares = np.square(model.weight(layer.inputs[1] or ""), dtype=np.float64)
    return np.asarray(summed_by_input(squares, groups_of(layer)))


def _variance(moments: ChannelMoments) -> Floats:
    return np.maximum(moments.mean_square() - np.square(moments.mean), 0.0)
