"""Encodings of one model for another that computes the same, in whatever framework and under whatever names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from isobit.encoding import Encoding
from isobit.errors import EncodingError
from isobit.plugins import registry
from isobit.sites import Site, Tensor, Weight
from isobit.transferring.content import Side
from isobit.transferring.folded import fold
from isobit.transferring.placing import place_encodings
from isobit.transferring.report import Transfer

if TYPE_CHECKING:
    from isobit.plan import Plan

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
    (ours, _), (theirs, plan) = _opened(source), _opened(target)
    wanted = None if plan is None else list(plan.placements)
    best = place_encodings(encodings, ours, theirs, wanted)
    if not best.complete:
        folded = _transfer_folded(encodings, ours, theirs, plan)
        best = min((best, folded), key=lambda found: (len(found.unmapped) + len(found.missing), found is folded))
    if encodings and not best.mapped:
        site, why = next(iter(best.unmapped.items()))
        raise EncodingError(f"none of the {len(encodings)} encodings has a place in the target; {str(site)!r}: {why}")
    return best


def _transfer_folded(encodings: Mapping[Site, Encoding], source: Side, target: Side, plan: Plan | None) -> Transfer:
    """Both models with folded batch norms, but for a target whose plan speaks of it as it is."""
    ours, renamed = fold(source)
    theirs = target if plan is not None else fold(target)[0]
    kept: dict[Site, Encoding] = {}
    stale: dict[Site, str] = {}
    for site, encoding in encodings.items():
        if isinstance(site, Weight) and _is_of_unfolded(encoding, site.name, source, ours):
            stale[site] = "it was made for the weight as it is before its batch norm is folded, and the target's is folded"
            continue
        name = site.name if isinstance(site, Tensor) else ""
        while name in renamed:
            name = renamed[name]
        kept.setdefault(Tensor(name) if name else site, encoding)
    found = place_encodings(kept, ours, theirs, None if plan is None else list(plan.placements))
    notes = (*found.notes, _FOLDED) if plan is None and theirs.graph is not target.graph else found.notes
    return replace(found, unmapped={**found.unmapped, **stale}, notes=notes)


def _is_of_unfolded(encoding: Encoding, name: str, raw: Side, folded: Side) -> bool:
    """Whether the range of an encoding is that of the weight before folding rather than after."""
    if name not in raw.graph.weights or name not in folded.graph.weights:
        return False
    values = [np.asarray(side.read(name), np.float64) for side in (raw, folded)]
    if values[0].shape != values[1].shape or np.array_equal(*values):
        return False
    try:
        scale = encoding.broadcast(values[0].shape)[0].astype(np.float64)
    except EncodingError:
        return False
    axes = tuple(axis for axis in range(scale.ndim) if scale.shape[axis] == 1) if scale.ndim else None
    steps = [np.abs(value / scale).max(axis=axes) for value in values]
    levels = 2.0 ** (encoding.spec.bits - 1)
    before, after = (float(np.median(np.abs(np.log(np.maximum(s, 1e-9) / levels)))) for s in steps)
    return before < after


def _opened(model: Any) -> tuple[Side, Plan | None]:
    from isobit.quantsim import QuantSim

    if isinstance(model, QuantSim):
        return Side(model.graph, model.backend_model.weight), model.plan
    if not (hasattr(model, "graph") and hasattr(model, "set_quantizers")):
        model = registry().backend_for(model).open(model)
    return Side(model.graph, model.weight), None
