"""Quantized copies of a model, for techniques that compare them with the float one."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from isobit.backend.checked_model import CheckedModel
from isobit.calibration.resolve import resolve
from isobit.calibration.scheme import Calibrator
from isobit.edits.draft import Draft
from isobit.edits.edit import Insert, NewNode
from isobit.encodings.encoding import Encoding
from isobit.graph.sites import Input, Site, Tensor
from isobit.placement.plan import Placement, Plan
from isobit.statistics.channel_range import ChannelRange
from isobit.statistics.histogram import Histogram
from isobit.statistics.reducer import Reducer
from isobit.statistics.statistics import Statistics


def simulated_encodings(
    model: CheckedModel, plan: Plan, statistics: Statistics, calibrator: Calibrator, frozen: Mapping[Site, Encoding]
) -> dict[Site, Encoding]:
    """The encodings of all that `plan` simulates, chosen from the ranges in `statistics`."""
    resolved = resolve(model.graph, plan, statistics, calibrator, model.weight, frozen=frozen)
    return {site: encoding for site, encoding in resolved.encodings.items() if plan.placements[site].simulated}


def quantized_copy(model: CheckedModel, encodings: Mapping[Site, Encoding]) -> CheckedModel:
    """A copy of `model` with these quantizers switched on; `model` itself has none."""
    copy = model.copy()
    copy.set_quantizers(encodings)
    return copy


def weights_quantized_copy(
    model: CheckedModel, plan: Plan, encodings: Mapping[Site, Encoding], statistics: Statistics
) -> CheckedModel:
    """A copy of `model` with the quantizers of weights, and activations clipped to their grids but not rounded.

    For means: rounding an activation has next to no mean error, but it is not continuous. Where float noise takes a
    value across a tie, frameworks part by a whole step, and every layer behind makes more of it. A clip stands behind
    each tensor that the scheme of calibration cuts off; names stay.
    """
    copy = model.copy()
    draft = Draft(copy.graph, copy.weight)
    for site, encoding in encodings.items():
        placement = plan.placements[site]
        reducer = statistics.get(Tensor(placement.tensor))
        if placement.kind == "activation" and encoding.spec.is_integer and _cuts_off(encoding, reducer):
            _clip(draft, placement, encoding)
    if draft.edits:
        copy.edit(draft)
    constants = {s: e for s, e in encodings.items() if plan.placements[s].kind in ("weight", "constant")}
    copy.set_quantizers(constants)
    return copy


def _cuts_off(encoding: Encoding, reducer: Reducer | None) -> bool:
    """Whether values were seen further outside the grid than rounding moves them anyway."""
    if not isinstance(reducer, Histogram | ChannelRange):
        return False  # a fixed range was not observed, and its operation does not leave it
    half = encoding.scale / 2
    return bool(np.any(reducer.minimum < encoding.minimum - half) or np.any(reducer.maximum > encoding.maximum + half))


def _clip(draft: Draft, placement: Placement, encoding: Encoding) -> None:
    site = placement.site
    assert isinstance(site, Tensor | Input)  # activations have no other sites
    if encoding.axis is None:
        bounds = {"min": float(encoding.minimum), "max": float(encoding.maximum)}
        draft.apply(Insert(site, (NewNode("Clip", attributes=bounds),)))
        return
    rank = draft.graph.tensors[placement.tensor].rank or encoding.axis + 1
    shape = (-1, *(1,) * (rank - 1 - encoding.axis))
    values = {"Max": encoding.minimum.reshape(shape), "Min": encoding.maximum.reshape(shape)}
    names = {op: draft.free_name(f"{placement.tensor}.{op.lower()}") for op in values}
    chain = tuple(NewNode(op, (name,)) for op, name in names.items())
    draft.apply(Insert(site, chain, {names[op]: value for op, value in values.items()}))
