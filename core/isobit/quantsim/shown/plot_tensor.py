"""The values of one quantized tensor or weight with its grid, from what calibration saw."""

from __future__ import annotations

from isobit.encodings.encoding import Encoding
from isobit.errors import ModelError, did_you_mean
from isobit.graph.sites import Tensor
from isobit.html_report import DrawnValues, TensorPlot
from isobit.placement.plan import Placement, constant_name
from isobit.quantsim.simulation import Simulation
from isobit.statistics.channel_range import ChannelRange
from isobit.statistics.histogram import Histogram


def plot_tensor(simulation: Simulation, name: str) -> TensorPlot:
    """The plot of a quantized tensor or weight by its name, or of one input, ``"node[0]"``.

    Raises ModelError for what is not quantized, with the reason, and before calibration.
    """
    simulation.require_quantizers()
    placement = _placement(simulation, name)
    encoding = simulation.encodings[placement.site]
    if placement.kind == "activation":
        return _of_activation(simulation, name, placement, encoding)
    values = simulation.model.weight(constant_name(simulation.graph, placement.site))
    drawn = DrawnValues.of(values, encoding, placement.channel_axis)
    seen = float(values.min(initial=0.0)), float(values.max(initial=0.0))
    channels = values.shape[placement.channel_axis] if values.ndim else 1
    return _plot(name, encoding, seen, channels, drawn)


def _placement(simulation: Simulation, name: str) -> Placement:
    graph, plan = simulation.graph, simulation.plan
    by_name: dict[str, Placement] = {}
    for site, placement in plan.placements.items():
        of_values = placement.tensor if placement.kind == "activation" else constant_name(graph, site)
        by_name.setdefault(of_values, placement)
        by_name[str(site)] = placement
    if name in by_name:
        return by_name[name]
    if name in plan.floats:
        raise ModelError(f"{name} has no grid to plot: {plan.floats[name]}")
    raise ModelError(f"nothing that is quantized is called {name!r}{did_you_mean(name, by_name)}")


def _of_activation(simulation: Simulation, name: str, placement: Placement, encoding: Encoding) -> TensorPlot:
    """From statistics; a simulator whose encodings came from a file may have none, and then the grid stands alone."""
    observed = simulation.statistics.get(Tensor(placement.tensor))
    if isinstance(observed, Histogram) and not observed.is_empty:
        drawn = DrawnValues.of_histogram(observed, encoding)
        return _plot(name, encoding, (observed.minimum, observed.maximum), 1, drawn)
    if isinstance(observed, ChannelRange) and not observed.is_empty:
        drawn = DrawnValues().with_ranges(observed.minimum, observed.maximum, encoding)
        seen = float(observed.minimum.min()), float(observed.maximum.max())
        return _plot(name, encoding, seen, observed.minimum.size, drawn)
    return _plot(name, encoding, (0.0, 0.0), 1, DrawnValues())


def _plot(name: str, encoding: Encoding, seen: tuple[float, float], channels: int, drawn: DrawnValues) -> TensorPlot:
    grid = float(encoding.minimum.min()), float(encoding.maximum.max())
    return TensorPlot(name, str(encoding.spec), grid, seen, float(encoding.scale.max()), channels, drawn)
