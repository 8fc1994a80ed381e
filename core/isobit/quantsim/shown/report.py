"""What a simulator quantizes, what not and why, and what techniques did: as data, and as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from isobit.encodings.encoding import Encodings
from isobit.graph.graph import Graph
from isobit.graph.sites import Input
from isobit.placement.coverage import Coverage
from isobit.placement.plan import Plan, is_inside_chain
from isobit.quantsim.simulation import Simulation
from isobit.recipes.recipe import StepResult
from isobit.techniques.technique import TechniqueReport


@dataclass(frozen=True)
class Report:
    """A snapshot of a simulator; ``str(report)`` is the summary that export writes."""

    target: str
    graph: Graph
    plan: Plan
    encodings: Encodings
    techniques: Sequence[TechniqueReport]
    notes: Sequence[str]
    calibration: str
    steps: Sequence[StepResult] = ()

    @classmethod
    def of(cls, simulation: Simulation) -> Report:
        """The report of a simulation as it is now."""
        return cls(
            simulation.target.name,
            simulation.graph,
            simulation.plan,
            simulation.encodings,
            tuple(simulation.reports),
            (*simulation.plan.notes, *simulation.notes),
            simulation.calibration or "not calibrated",
            tuple(simulation.steps),
        )

    @property
    def counts(self) -> dict[str, int]:
        """Quantized sites by kind, ``float`` for those left alone."""
        counts = Counter(placement.kind for placement in self.plan.placements.values())
        return {**{str(kind): count for kind, count in counts.items()}, "float": len(self.left_in_float)}

    @property
    def left_in_float(self) -> dict[str, str]:
        """Float tensors and weights that are not quantized, and why; the inside of fused chains is not listed."""
        return {name: why for name, why in self.plan.floats.items() if not is_inside_chain(why)}

    @property
    def coverage(self) -> Coverage:
        """How much of the weights and of the multiply-adds runs in integers."""
        return Coverage.of(self.graph, self.plan)

    def __str__(self) -> str:
        lines = [f"target        {self.target}", f"operations    {_op_counts(self.graph)}"]
        counts = self.counts
        kinds = ("activation", "weight", "bias", "constant")
        lines.append(
            "quantized     " + ", ".join(f"{counts[k]} {_plural(k, counts[k])}" for k in kinds if counts.get(k))
        )
        lines.append(f"coverage      {self.coverage}")
        lines.append(f"calibration   {self.calibration}")
        if any(step.before is not None for step in self.steps):
            lines += ["", "recipe", *(f"  {step}" for step in self.steps)]
        for report in self.techniques:
            lines += ["", f"{report.technique}: {len(report.changed)} changed, {len(report.left)} left"]
            lines += [f"  left {name}: {why}" for name, why in report.left.items()]
            lines += [f"  note {note}" for note in report.notes]
        if self.left_in_float:
            lines += ["", f"left in float ({len(self.left_in_float)})"]
            lines += [f"  {name}: {why}" for name, why in self.left_in_float.items()]
        notes = [*self.graph.notes, *self.notes]
        if notes:
            lines += ["", "notes", *(f"  {note}" for note in notes)]
        if self.encodings:
            lines += ["", "encodings", *self._encoding_lines()]
        return "\n".join(lines) + "\n"

    def _encoding_lines(self) -> list[str]:
        width = max(len(str(site)) for site in self.encodings)
        lines = []
        for site, encoding in self.encodings.items():
            low, high = encoding.minimum.min(), encoding.maximum.max()
            kind = self.plan.placements[site].kind if site in self.plan.placements else "loaded"
            name = f"{site}" if not isinstance(site, Input) else f"{site} (this reader alone)"
            lines.append(f"  {name:<{width}}  {kind:<10}  {encoding.spec!s:<28}  [{low:.6g}, {high:.6g}]")
        return lines


def _op_counts(graph: Graph) -> str:
    counts = Counter(node.op for node in graph.nodes)
    return ", ".join(f"{count} {op}" for op, count in counts.most_common())


def _plural(kind: str, count: int) -> str:
    if count == 1:
        return kind
    return "biases" if kind == "bias" else f"{kind}s"
