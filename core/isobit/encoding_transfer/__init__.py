"""Encodings of one model for another that computes the same, in whatever framework and under whatever names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from isobit.encoding_transfer.content import Array, Side
from isobit.encoding_transfer.folded import fold
from isobit.encoding_transfer.placing import place_encodings
from isobit.encoding_transfer.report import Transfer
from isobit.encodings.encoding import Encoding
from isobit.encodings.ranges import encode_weight
from isobit.errors import EncodingError
from isobit.graph.sites import Site, Tensor, Weight
from isobit.plugins import registry

if TYPE_CHECKING:
    from isobit.placement.plan import Plan

__all__ = ["Transfer", "transfer"]

_FOLDED = "batch norms were folded to compare the two models: the encodings belong to the folded target"


def transfer(encodings: Mapping[Site, Encoding], source: Any, target: Any) -> Transfer:
    """Encodings of `source` as encodings of `target`, found by structure and by the content of the weights.

    Each model is a QuantSim, a model opened by a backend, a framework's own model, or a path. Names do not count, nor
    do added or missing transposes and reshapes; where only one of the two has its batch norms folded, both are compared
    folded. For a QuantSim as target, every site of its plan is looked for; else each site that stands where the source
    has one. What symmetry leaves open is reported, unless all that it could mean is the same. Raises EncodingError
    where nothing at all corresponds.
    """
    (source_side, _), (target_side, plan) = _opened(source), _opened(target)
    sites = None if plan is None else list(plan.placements)
    best = place_encodings(encodings, source_side, target_side, sites)
    if not best.complete:
        folded = _transfer_folded(encodings, source_side, target_side, plan)
        # Where both map as many: the one for the target as it is, else the folded one, whose reasons are more useful.
        candidates = (best, folded) if _FOLDED in folded.notes else (folded, best)
        best = min(candidates, key=lambda result: len(result.unmapped) + len(result.missing))
    if encodings and not best.mapped:
        site, reason = next(iter(best.unmapped.items()))
        raise EncodingError(
            f"none of the {len(encodings)} encodings has a place in the target; {str(site)!r}: {reason}"
        )
    return best


def _transfer_folded(encodings: Mapping[Site, Encoding], source: Side, target: Side, plan: Plan | None) -> Transfer:
    """Both models with folded batch norms, but for a target that has a plan: the plan is of the target as it is."""
    folded_source, renamed = fold(source)
    folded_target = target if plan is not None else fold(target)[0]
    carried: dict[Site, Encoding] = {}
    stale: dict[Site, str] = {}
    for site, encoding in encodings.items():
        if isinstance(site, Weight) and _is_of_unfolded(encoding, site.name, source, folded_source):
            stale[site] = "it was made for the weight before its batch norm is folded, and the target's is folded"
            continue
        name = site.name if isinstance(site, Tensor) else ""
        while name in renamed:
            name = renamed[name]
        carried.setdefault(Tensor(name) if name else site, encoding)
    result = place_encodings(carried, folded_source, folded_target, None if plan is None else list(plan.placements))
    notes = (*result.notes, _FOLDED) if plan is None and folded_target.graph is not target.graph else result.notes
    return replace(result, unmapped={**result.unmapped, **stale}, notes=notes)


def _is_of_unfolded(encoding: Encoding, name: str, raw: Side, folded: Side) -> bool:
    """Whether an encoding is closer to what the weight before folding gives than to what the folded one gives."""
    if name not in raw.graph.weights or name not in folded.graph.weights or encoding.spec.bits > 16:
        return False  # the scale of a bias follows from input and weight, not from its values
    raw_weight, folded_weight = (np.asarray(side.read(name)) for side in (raw, folded))
    if raw_weight.shape != folded_weight.shape or np.array_equal(raw_weight, folded_weight):
        return False
    return _distance(encoding, raw_weight) < _distance(encoding, folded_weight)


def _distance(encoding: Encoding, weight: Array) -> float:
    """How far the scales are from those of the weight's own range, in octaves."""
    blocks = encoding.axis if encoding.scale.ndim > 1 else None
    of_weight = encode_weight(weight, encoding.spec, channel_axis=encoding.axis or 0, block_axis=blocks)
    if of_weight.scale.shape != encoding.scale.shape:
        return float("inf")
    return float(np.median(np.abs(np.log2(encoding.scale.astype(np.float64) / of_weight.scale))))


def _opened(model: Any) -> tuple[Side, Plan | None]:
    from isobit.quantsim.quantsim import QuantSim

    if isinstance(model, QuantSim):
        return Side(model.graph, model.backend_model.weight), model.plan
    if not (hasattr(model, "graph") and hasattr(model, "set_quantizers")):
        model = registry().open(model)
    return Side(model.graph, model.weight), None
