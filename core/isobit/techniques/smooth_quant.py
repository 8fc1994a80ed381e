"""SmoothQuant: channels of an activation that are far larger than the others become smaller, their weights larger.

Source: Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models",
ICML 2023; alpha is searched here for each input by the output error that both roundings are expected to make.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from isobit.backend import BackendModel, Request
from isobit.channel_ranges import ChannelRanges
from isobit.data import Dataset
from isobit.edits import Draft
from isobit.errors import FormatError
from isobit.plan import Placement, Plan
from isobit.ranges import encode_range, encode_weight
from isobit.sites import Tensor
from isobit.techniques.input_scaling import (
    ScaledInput,
    find_inputs,
    input_placement,
    rescale,
    rounded_before,
    weight_placement,
)
from isobit.techniques.technique import TechniqueReport
from isobit.techniques.weighted_layer import Floats

_ALPHAS = tuple(step / 20 for step in range(21))


@dataclass(frozen=True)
class SmoothQuant:
    """Divide each input channel of linear layers by ``s = max|x|**alpha / max|w|**(1 - alpha)``, multiply its weights.

    `alpha` None searches 0, 0.05, ... 1 for each input, and none at all: the least expected output error, from the
    rounding noise of the activation's grid and the rounding errors of the weights, weighted with each channel's mean
    square. One pass over the data. The division goes into the norm or layer before, or a Mul where it has other readers.
    """

    alpha: float | None = None

    def __post_init__(self) -> None:
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            raise FormatError(f"alpha lies between 0 and 1, not {self.alpha}")

    def apply(self, model: BackendModel, data: Dataset | None = None, plan: Plan | None = None) -> TechniqueReport:
        """Smooth every input that the plan quantizes."""
        if data is None or plan is None:
            return _report((), {"model": "it needs data and a plan: apply it through QuantSim"})
        items, left = find_inputs(model.graph, plan)
        left.update({i.name: "its input stays in float" for i in items if input_placement(i.readers[0], plan) is None})
        items = [item for item in items if item.name not in left]
        useless = rounded_before(model, plan, items)
        left.update({item.name: useless[item.tensor] for item in items if item.tensor in useless})
        items = [item for item in items if item.tensor not in useless]
        if not items:
            return _report((), left or {"model": "it has no quantized linear layer"})
        ranges = {item.tensor: ChannelRanges() for item in items}
        model.observe(data, [Request(Tensor(name), observer) for name, observer in ranges.items()])
        draft = Draft(model.graph, model.weight)
        changed = []
        for item in items:
            alpha, factors = self._factors(model, plan, item, ranges[item.tensor])
            if factors is None:
                left[item.name] = "no alpha makes the expected error smaller"
            else:
                where = rescale(draft, item, factors)
                changed.append(f"{item.name}: alpha {alpha:g}, divided in {where}")
        if draft.edits:
            model.edit(draft.edits)
        return _report(tuple(changed), left)

    def _factors(
        self, model: BackendModel, plan: Plan, item: ScaledInput, ranges: ChannelRanges
    ) -> tuple[float, Floats | None]:
        weights = [model.weight(node.inputs[1] or "").astype(np.float64) for node in item.readers]
        if ranges.minimum.size != weights[0].shape[1]:
            return 0.0, None
        heaviest = np.max([np.abs(weight).max(axis=0, initial=0.0) for weight in weights], axis=0)
        lively = (ranges.largest > 0) & (heaviest > 0)
        placements = [p for p in (weight_placement(node, plan) for node in item.readers) if p is not None]
        source = input_placement(item.readers[0], plan)
        assert source is not None  # those without one were left out

        def factors_of(alpha: float) -> Floats:
            factors = np.ones_like(heaviest)
            factors[lively] = ranges.largest[lively] ** alpha / heaviest[lively] ** (1 - alpha)
            return factors / np.exp(np.log(factors).mean())

        def error(factors: Floats) -> float:
            return expected_error(weights, placements, source, ranges, factors)

        if self.alpha is not None:
            return self.alpha, factors_of(self.alpha)
        errors = {alpha: error(factors_of(alpha)) for alpha in _ALPHAS}
        best = min(errors, key=errors.__getitem__)
        return best, factors_of(best) if errors[best] < error(np.ones_like(heaviest)) else None


def expected_error(
    weights: Sequence[Floats],
    placements: Sequence[Placement],
    source: Placement,
    ranges: ChannelRanges,
    factors: Floats,
) -> float:
    """The expected squared output error, summed over the outputs of all readers, with these factors.

    The grid of the activation puts noise of ``scale**2 / 12`` on each channel; the errors of the weights meet the
    channels' mean squares. Errors of different channels are taken as independent.
    """
    noise = 0.0
    if source.spec.is_integer:
        spec = source.spec.with_granularity(None) if source.spec.granularity else source.spec
        encoding = encode_range((ranges.minimum / factors).min(), (ranges.maximum / factors).max(), spec)
        noise = float(encoding.scale) ** 2 / 12
    square = ranges.mean_square / np.square(factors)
    total = 0.0
    for weight, placement in zip(weights, placements, strict=True):
        scaled = (weight * factors).astype(np.float32)
        encoding = encode_weight(
            scaled, placement.spec, channel_axis=placement.channel_axis, block_axis=placement.block_axis
        )
        wrong = encoding.fake_quantize(scaled).astype(np.float64) - scaled
        total += noise * float(np.square(scaled, dtype=np.float64).sum()) + float(np.square(wrong).sum(axis=0) @ square)
    return total


def _report(changed: tuple[str, ...], left: dict[str, str]) -> TechniqueReport:
    return TechniqueReport("SmoothQuant", changed, left)
