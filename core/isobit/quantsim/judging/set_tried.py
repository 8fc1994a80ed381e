"""The quantizers of a model that only tries some encodings."""

from __future__ import annotations

from collections.abc import Mapping

from isobit.backend.checked_model import CheckedModel
from isobit.encodings.encoding import Encoding
from isobit.graph.sites import Site
from isobit.placement.plan import Plan
from isobit.quantsim.simulation import set_simulated


def set_tried(model: CheckedModel, plan: Plan, encodings: Mapping[Site, Encoding]) -> None:
    """Give a model the quantizers of encodings that are compared with others: all that are simulated but for biases.

    The step of a bias is that of its products, a hundredth of the error that the rounding of the input makes in them;
    and all that is left to differ are the grids of activations.
    """
    tried = {site: e for site, e in encodings.items() if plan.placements[site].kind != "bias"}
    model.enable(list(set_simulated(model, plan, tried)), on=True)
