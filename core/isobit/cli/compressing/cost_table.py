"""What each layer of a model costs, and all of them together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isobit.cli.terminal import capped, line, table

if TYPE_CHECKING:
    from isobit.budget import Cost
    from isobit.graph.graph import Graph
    from isobit.html_report import Section


@dataclass(frozen=True)
class FoundCosts:
    """A model, what its nodes cost for one sample, and the processor whose times these are (an empty text: none)."""

    path: Path
    graph: Graph
    costs: dict[str, Cost]
    processor: str

    @classmethod
    def read(cls, path: Path, target: str, backend: str | None) -> FoundCosts:
        """Open it. Raises ModelError."""
        from isobit.budget import layer_costs
        from isobit.plugins import registry

        tables = [each for each in registry().target(target).costs if each.multiply]
        graph = registry().open(path, backend=backend).graph
        times = tables[0] if tables else None
        return cls(path, graph, layer_costs(graph, times), times.processor if times is not None else "")

    @property
    def open_sizes(self) -> list[str]:
        """Inputs with a size, other than that of the batch, that the model leaves open: it counts as 1."""
        from isobit.budget.cost_model import open_inputs

        return open_inputs(self.graph)

    def data(self) -> dict[str, Any]:
        """Costs by node, and their sum."""
        from isobit.budget import Cost

        layers = [{"name": name, "op": self.graph.node(name).op, **asdict(cost)} for name, cost in self.costs.items()]
        total = asdict(Cost.sum(self.costs.values()))
        return {"total": total, "layers": layers, "processor": self.processor, "open_sizes": self.open_sizes}

    def sections(self) -> list[Section]:
        """The sum, and all layers."""
        from isobit.budget import Cost
        from isobit.compression.compression_report import cost_lines
        from isobit.html_report import notes

        told = [*cost_lines(Cost.sum(self.costs.values()))]
        told += [f"By the times of {self.processor}, in float."] if self.processor else []
        told += [f"Input {name!r} has open sizes, which count as 1." for name in self.open_sizes]
        return [notes("A sample", told), cost_section(self.graph, self.costs)]

    def show(self, cap: int) -> None:
        """The sum, and the layers, the dearest first."""
        from isobit.budget import Cost
        from isobit.compression.compression_report import cost_lines, number

        total = Cost.sum(self.costs.values())
        line(str(self.path), style="bold")
        for text in cost_lines(total):
            line(text)
        if self.processor:
            line(f"by the times of {self.processor}, in float")
        for name in self.open_sizes:
            line(f"note: input {name!r} has open sizes, which count as 1")
        rows = sorted(self.costs.items(), key=lambda item: (-item[1].macs, -item[1].parameters))
        dear = [(name, cost) for name, cost in rows if cost.macs or cost.parameters]
        table(
            ("layer", "op", "macs", "share", "parameters", "activations"),
            [
                (
                    name,
                    self.graph.node(name).op,
                    number(cost.macs),
                    f"{cost.macs / total.macs:.1%}" if total.macs else "",
                    number(cost.parameters),
                    number(cost.activations),
                )
                for name, cost in dear[:cap]
            ],
            right=("macs", "share", "parameters", "activations"),
        )
        for text in capped([name for name, _ in dear], cap, "  ... and {count} more: --all lists them")[cap:]:
            line(text)


def cost_section(graph: Graph, costs: Mapping[str, Cost]) -> Section:
    """What each layer costs for one sample, as a table of a page; layers that cost nothing are left out."""
    from isobit.budget import Cost
    from isobit.compression.compression_report import number
    from isobit.html_report import Cell, Column
    from isobit.html_report import table as html_table

    total = Cost.sum(costs.values()).macs
    rows: list[list[Cell]] = []
    for name, cost in costs.items():
        share = cost.macs / total if total else 0.0
        figures = [(number(value), value) for value in (cost.macs, cost.parameters, cost.activations)]
        if cost.macs or cost.parameters:
            rows.append([name, graph.node(name).op, figures[0], (f"{share:.1%}", share), *figures[1:]])
    titles = ("macs", "share", "parameters", "activations")
    columns = [Column("layer", "name"), Column("op"), *(Column(title, "number") for title in titles)]
    return html_table("What each layer costs", columns, rows, filter="Filter by name, op")
