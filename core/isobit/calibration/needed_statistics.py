"""Which tensors a plan needs statistics of, and the empty reducers for them."""

from __future__ import annotations

from isobit.encodings.quant_spec import PerChannel
from isobit.graph.sites import Tensor
from isobit.placement.plan import Plan
from isobit.statistics.channel_range import ChannelRange
from isobit.statistics.histogram import Histogram
from isobit.statistics.statistics import Statistics


def blank_statistics(plan: Plan, limit: int | None) -> Statistics:
    """Empty reducers for the tensors that the plan observes; `limit` is that of a Histogram."""
    by_channel = {p.tensor for p in plan.of_kind("activation") if isinstance(p.spec.granularity, PerChannel)}
    return Statistics(
        {site: ChannelRange() if site.name in by_channel else Histogram(limit) for site in observed_sites(plan)}
    )


def observed_sites(plan: Plan) -> list[Tensor]:
    """The tensors whose statistics the plan needs, whoever reads them quantized."""
    names = (
        placement.tensor
        for placement in plan.of_kind("activation")
        if placement.simulated and not placement.range_required
    )
    return [Tensor(name) for name in dict.fromkeys(names)]
