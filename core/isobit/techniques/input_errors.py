"""What factors on the inputs of linear layers do to the layers' output error, told from one pass over the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isobit.backend import BackendModel, Request
from isobit.channel_range import ChannelRange
from isobit.data import Dataset
from isobit.patches import Patches
from isobit.plan import Plan
from isobit.quant_spec import PerTensor
from isobit.ranges import encode_range, encode_weight
from isobit.rows import Rows
from isobit.sites import Tensor
from isobit.techniques.input_scaling import ScaledInput, input_placement, weight_placement
from isobit.techniques.weighted_layer import Floats


@dataclass(frozen=True, eq=False)
class SeenInput:
    """Ranges of the channels of one input, and a sample of its rows, (rows, channels)."""

    ranges: ChannelRange
    rows: NDArray[np.float32]


def observe_inputs(model: BackendModel, data: Dataset, items: Sequence[ScaledInput], rows: int) -> dict[str, SeenInput]:
    """What the data shows of each input, by its tensor; at most `rows` rows of each are kept. One pass."""
    ranges = {item.tensor: ChannelRange() for item in items}
    kept = {item.tensor: Rows(Patches.of(model.graph, item.readers[0]), rows) for item in items}
    requests = [Request(Tensor(name), observer) for found in (ranges, kept) for name, observer in found.items()]
    model.observe(data, requests)
    return {name: SeenInput(ranges[name], kept[name].values[:, 0]) for name in ranges}


def expected_error(model: BackendModel, plan: Plan, item: ScaledInput, seen: SeenInput, factors: Floats) -> float:
    """The expected squared output error of one row, over all readers, when the input is divided by `factors`.

    The grid of the input puts noise of ``scale**2 / 12`` on each channel; the errors of the weights meet the sampled
    rows. The encodings are those that the plan would give the new weights.
    """
    noise = _input_noise(plan, item, seen.ranges, factors)
    rows = (seen.rows / factors).astype(np.float32)
    total = 0.0
    for node in item.readers:
        placement = weight_placement(node, plan)
        if placement is None:
            continue
        weight = (model.weight(node.inputs[1] or "") * factors).astype(np.float32)
        encoding = encode_weight(
            weight, placement.spec, channel_axis=placement.channel_axis, block_axis=placement.block_axis
        )
        wrong = rows @ (encoding.fake_quantize(weight) - weight).T
        total += noise * float(np.square(weight, dtype=np.float64).sum())
        total += float(np.square(wrong, dtype=np.float64).sum()) / max(len(rows), 1)
    return total


def _input_noise(plan: Plan, item: ScaledInput, ranges: ChannelRange, factors: Floats) -> float:
    """The variance of rounding on the grid that the divided input would get; 0 where it stays in float."""
    placement = input_placement(item.readers[0], plan)
    if placement is None or not placement.spec.is_integer:
        return 0.0
    spec = placement.spec.with_granularity(PerTensor())
    encoding = encode_range((ranges.minimum / factors).min(), (ranges.maximum / factors).max(), spec)
    return float(encoding.scale) ** 2 / 12


def best_alpha(
    model: BackendModel, plan: Plan, item: ScaledInput, seen: SeenInput, factors: Callable[[float], Floats]
) -> tuple[float, Floats] | None:
    """The alpha whose `factors` have the least expected error, and these; None where no factors at all are as good.

    Tenths from 0 to 1, then the half-tenths beside the best of them.
    """

    def error(alpha: float) -> float:
        return expected_error(model, plan, item, seen, factors(alpha))

    errors = {tenth / 10: error(tenth / 10) for tenth in range(11)}
    near = min(errors, key=errors.__getitem__)
    errors.update({alpha: error(alpha) for alpha in (near - 0.05, near + 0.05) if 0 < alpha < 1})
    best = min(errors, key=errors.__getitem__)
    found = factors(best)
    return (best, found) if errors[best] < expected_error(model, plan, item, seen, np.ones_like(found)) else None
