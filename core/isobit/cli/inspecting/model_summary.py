"""A float model: what is in it, and what a target would quantize."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isobit.cli.terminal import capped, line, table

if TYPE_CHECKING:
    from isobit.graph.graph import Graph, TensorInfo
    from isobit.html_report import Section
    from isobit.quantsim.quantsim import QuantSim


@dataclass(frozen=True)
class FoundModel:
    """A float model as it was opened, and its plan for a target."""

    path: Path
    graph: dict[str, Any]
    sim: QuantSim
    folded: int

    @classmethod
    def read(cls, path: Path, target: str, backend: str | None, fold: bool) -> FoundModel:
        """Open it. Raises ModelError."""
        from isobit.quantsim.quantsim import QuantSim
        from isobit.techniques.fold_batch_norms import FoldBatchNorms

        sim = QuantSim(path, target=target, backend=backend)
        graph = _graph_data(sim.graph)
        reports = sim.apply(FoldBatchNorms()) if fold else []
        return cls(path, graph, sim, sum(len(report.changed) for report in reports))

    def data(self) -> dict[str, Any]:
        """The graph and the plan."""
        return {**self.graph, "folded": self.folded, "plan": _plan_data(self.sim)}

    def sections(self) -> list[Section]:
        """Figures, inputs and outputs, operations, what each layer costs, and the plan."""
        from isobit.budget import layer_costs
        from isobit.cli.compressing.cost_table import cost_section
        from isobit.html_report import Column, cards, notes
        from isobit.html_report import table as html_table
        from isobit.quantsim.shown.simulator_sections import in_float

        graph, report = self.graph, self.sim.report
        ends = [
            (direction[:-1], t["name"], _shape_text(t["shape"]), t["dtype"])
            for direction in ("inputs", "outputs")
            for t in graph[direction]
        ]
        plan = [
            (str(site), placement.kind, str(placement.spec)) for site, placement in self.sim.plan.placements.items()
        ]
        figures = {
            "operations": str(sum(graph["operations"].values())),
            "parameters": f"{graph['parameters']:,}",
            "would be quantized": str(len(plan)),
            "target": self.sim.target.name,
        }
        operations = [(op, (str(count), float(count))) for op, count in graph["operations"].items()]
        return [
            cards(figures),
            html_table(
                "Inputs and outputs", [Column(""), Column("name", "name"), Column("shape"), Column("type")], ends
            ),
            html_table("Operations", [Column("operation"), Column("count", "number")], operations, half=True),
            in_float(report.left_in_float),
            cost_section(self.sim.graph, layer_costs(self.sim.graph)),
            html_table(
                "What would be quantized",
                [Column("name", "name"), Column("kind"), Column("format")],
                plan,
                filter="Filter by name, kind, format",
            ),
            notes("Coverage, and notes", [f"Coverage: {report.coverage}.", *graph["notes"], *report.notes]),
        ]

    def show(self, cap: int) -> None:
        """Inputs, outputs, operations, and the plan in figures."""
        graph = self.graph
        line(str(self.path), style="bold")
        shapes = [
            (direction[:-1], t["name"], t["shape"], t["dtype"])
            for direction in ("inputs", "outputs")
            for t in graph[direction]
        ]
        table(
            ("", "name", "shape", "type"),
            [(direction, name, _shape_text(shape), dtype) for direction, name, shape, dtype in shapes],
        )
        ops = ", ".join(f"{count} {op}" for op, count in graph["operations"].items())
        line(f"operations  {sum(graph['operations'].values())}: {ops}")
        line(f"parameters  {graph['parameters']:,} (float constants, running statistics included)")
        for note in graph["notes"]:
            line(f"note        {note}")
        _print_plan(self.sim, self.folded, cap)


def _graph_data(graph: Graph) -> dict[str, Any]:
    """What the model holds before anything is folded."""
    import math

    operations = Counter(node.op for node in graph.nodes)
    floats = [info for info in graph.weights.values() if info.is_float]
    return {
        "inputs": [_tensor_data(name, graph.tensors[name]) for name in graph.inputs],
        "outputs": [
            _tensor_data(name, graph.tensors[tensor])
            for name, tensor in graph.outputs.items()
            if tensor in graph.tensors  # a constant can be an output
        ],
        "operations": dict(operations.most_common()),
        "parameters": sum(math.prod(info.shape) for info in floats),
        "notes": list(graph.notes),
    }


def _tensor_data(name: str, info: TensorInfo) -> dict[str, Any]:
    shape = None if info.shape is None else list(info.shape)
    return {"name": name, "shape": shape, "dtype": info.dtype}


def _shape_text(shape: list[Any] | None) -> str:
    return "unknown" if shape is None else "(" + ", ".join("?" if n is None else str(n) for n in shape) + ")"


def _plan_data(sim: QuantSim) -> dict[str, Any]:
    report = sim.report
    return {
        "target": sim.target.name,
        "counts": report.counts,
        "quantized": [
            {"name": str(site), "kind": placement.kind, "format": str(placement.spec)}
            for site, placement in sim.plan.placements.items()
        ],
        "float": report.left_in_float,
    }


def _print_plan(sim: QuantSim, folded: int, cap: int) -> None:
    report = sim.report
    line()
    folded_text = f" ({folded} batch norms and constants folded first)" if folded else ""
    line(f"target {sim.target.name} would quantize{folded_text}", style="bold")
    kinds = Counter((placement.kind, str(placement.spec)) for placement in sim.plan.placements.values())
    table(
        ("what", "format", "count"),
        [(kind, spec, str(count)) for (kind, spec), count in kinds.items()],
        right=("count",),
    )
    floats = [f"  {name}: {reason}" for name, reason in report.left_in_float.items()]
    line(f"and leave in float: {len(floats) or 'nothing'}", style="bold")
    for text in capped(floats, cap, "  ... and {count} more: --all lists them"):
        line(text)
