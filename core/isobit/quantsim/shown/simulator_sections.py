"""A calibrated simulator as the sections of a page: its quantizers, with what was seen of each, and the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from isobit.html_report import Cell, Column, Section, cards, notes, short_format, table
from isobit.placement.plan import constant_name
from isobit.quantsim.shown.plot_tensor import plot_tensor
from isobit.quantsim.shown.report import Report
from isobit.quantsim.simulation import Simulation


def simulator_sections(simulation: Simulation) -> list[Section]:
    """Figures, a table of the quantizers with the values of the one that is chosen, and what is in float and why."""
    report = Report.of(simulation)
    counts = report.counts
    figures = {
        "quantizers": str(len(simulation.encodings)),
        "activations": str(counts.get("activation", 0)),
        "weights": str(counts.get("weight", 0)),
        "batches": str(simulation.statistics.batches),
        "calibration": report.calibration,
    }
    rows: list[list[Cell]] = []
    plots: list[dict[str, Any]] = []
    for site, placement in simulation.plan.placements.items():
        if site not in simulation.encodings:
            continue
        plot = plot_tensor(simulation, str(site))
        name = placement.tensor if placement.kind == "activation" else constant_name(simulation.graph, site)
        rows.append(
            [
                name,
                placement.kind,
                short_format(simulation.encodings[site]),
                *((f"{value:.4g}", value) for value in (*plot.seen, *plot.grid, plot.step)),
                (str(plot.channels), float(plot.channels)),
            ]
        )
        plots.append(plot.to_dict())
    titles = ("least seen", "largest seen", "grid from", "to", "step", "channels")
    columns = [Column("name", "name"), Column("kind"), Column("format"), *(Column(title, "number") for title in titles)]
    told = [f"Coverage: {report.coverage}.", *report.notes]
    return [
        cards(figures),
        table("Quantizers", columns, rows, filter="Filter by name, kind, format", plots=plots),
        in_float(report.left_in_float),
        notes("Coverage, and notes", told, half=True),
    ]


def in_float(reasons: Mapping[str, str]) -> Section:
    """What stays in float, and why."""
    columns = (Column("name", "name"), Column("why", "words"))
    return table("In float, and why", columns, list(reasons.items()), none="Nothing stays in float.", half=True)
