"""A quantized copy of a model, for techniques that compare it with the float one."""

from __future__ import annotations

from collections.abc import Sequence

from isobit.backend import BackendModel, Request
from isobit.calibration.scheme import Calibrator
from isobit.data import Dataset
from isobit.plan import Plan
from isobit.resolve import blank_statistics, resolve
from isobit.sampling import SAMPLE_LIMIT


def simulate(
    model: BackendModel, plan: Plan, data: Dataset, calibrator: Calibrator, also: Sequence[Request] = ()
) -> BackendModel:
    """A copy of `model` with the quantizers of `plan` switched on; `model` itself has none.

    One pass over `data` through the float model calibrates them, and serves the requests in `also`.
    """
    statistics = blank_statistics(plan, SAMPLE_LIMIT)
    model.observe(data, [*statistics.requests(), *also])
    resolved = resolve(model.graph, plan, statistics, calibrator, model.weight, frozen=plan.frozen)
    twin = model.copy()
    twin.set_quantizers({s: e for s, e in resolved.encodings.items() if plan.placements[s].simulated})
    return twin
