"""NaN and infinity in weights: a model comes with them, or training leaves them behind."""

from __future__ import annotations

import numpy as np

from isobit.backend.checked_model import CheckedModel
from isobit.errors import ModelError
from isobit.graph.sites import Input, Weight
from isobit.placement.plan import Plan


def check_weights(model: CheckedModel, plan: Plan, advice: str) -> None:
    """Raise ModelError for NaN and infinity in parameters and in all that is quantized; a mask may well hold -inf.

    `advice` ends the message.
    """
    for name, info in model.graph.weights.items():
        uses = model.graph.uses(name)
        sites = (Weight(name), *(Input(use.node.name, use.index) for use in uses))
        matters = any(use.role != "data" for use in uses) or any(site in plan.placements for site in sites)
        if info.is_float and matters and not np.all(np.isfinite(value := model.weight(name))):
            bad = "NaN" if np.any(np.isnan(value)) else "infinity"
            raise ModelError(f"weight {name!r} holds {bad}: {advice}")
