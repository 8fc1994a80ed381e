"""A quantized copy of a model, for techniques that compare it with the float one."""

from __future__ import annotations

from collections.abc import Sequence

from isobit.backend import BackendModel, Request
from isobit.calibration.scheme import Calibrator
from isobit.data import Dataset
from isobit.plan import Plan
from isobit.resolve import observed_sites, resolve
from isobit.sites import Site
from isobit.statistics import Histogram, Statistics


def simulate(
    model: BackendModel, plan: Plan, data: Dataset, calibrator: Calibrator, also: Sequence[Request] = ()
) -> BackendModel:
    """A copy of `model` with the quantizers of `plan` switched on; `model` itself has none.

    One pass over `data` through the float model calibrates them, and serves the requests in `also`.
    """
    histograms: dict[Site, Histogram] = {site: Histogram() for site in observed_sites(plan)}
    requests = [Request(site, histogram) for site, histogram in histograms.items()]  # type: ignore[arg-type]
    model.observe(data, [*requests, *also])
    resolved = resolve(model.graph, plan, Statistics(histograms), calibrator, model.weight, frozen=plan.frozen)
    twin = model.copy()
    twin.set_quantizers({s: e for s, e in resolved.encodings.items() if plan.placements[s].simulated})
    return twin
