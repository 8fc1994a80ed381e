"""The table of a parity run: in the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from isobit.cli.terminal import table
from isobit.testing.parity.comparing import MARGIN_DB, Comparison, Counts, shares


def print_table(comparisons: Sequence[Comparison]) -> None:
    """Print one row for each network and stage."""
    columns, rows = _cells(comparisons)
    table(columns, rows, right=columns[3:])


def as_markdown(frameworks: Sequence[str], comparisons: Sequence[Comparison], broken: Sequence[str]) -> str:
    """The table, with sums over all networks below it."""
    columns, rows = _cells(comparisons)
    lines = [
        "| " + " | ".join(columns) + " |",
        "| " + " | ".join(["---"] * 3 + ["---:"] * (len(columns) - 3)) + " |",
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
        f"{', '.join(frameworks[1:])} against {frameworks[0]}, {len(comparisons)} comparisons.",
    ]
    for scheme, counts in shares(list(comparisons)).items():
        share = 100 * counts.equal / max(counts.total, 1)
        lines.append(
            f"{scheme}: {counts.equal} of {counts.total} activation encodings ({share:.1f} %) are equal to the "
        )
        lines[-1] += f"last bit, {counts.near} are one step apart, {counts.far} further."
    lines.append(f"Broken promises: {'; '.join(broken) or 'none'}.")
    return "\n".join(lines) + "\n"


def _cells(comparisons: Sequence[Comparison]) -> tuple[list[str], list[list[str]]]:
    """One row for each network and stage, all frameworks together."""
    schemes = list(dict.fromkeys(scheme for c in comparisons for scheme in c.activations))
    columns = ["network", "batch norms", "graph, plans", "weights", *schemes, "difference dB", "noise dB", "top-1 %"]
    groups: dict[tuple[str, str], list[Comparison]] = {}
    for comparison in comparisons:
        groups.setdefault((comparison.network, comparison.stage), []).append(comparison)
    return columns, [_row(network, stage, group, schemes) for (network, stage), group in groups.items()]


def _row(network: str, stage: str, comparisons: Sequence[Comparison], schemes: Sequence[str]) -> list[str]:
    unequal = sum(len(c.graph) + sum(c.plans.values()) for c in comparisons)
    outputs = [agreement for c in comparisons for agreement in c.outputs.values()]
    worst = min(outputs, key=lambda a: (a.kept, a.margin_db >= MARGIN_DB, a.margin_db))
    return [
        network,
        stage,
        "equal" if not unequal else f"{unequal} differ",
        _count([c.weights for c in comparisons]),
        *(_count([c.activations[scheme] for c in comparisons]) for scheme in schemes),
        f"{worst.difference_db:.0f}",
        f"{worst.noise_db:.0f}",
        f"{100 * min(a.top1 for a in outputs):.1f}",
    ]


def _count(parts: Sequence[Counts]) -> str:
    """``12`` where all are equal, else ``11/12`` and what the others are."""
    total = Counts()
    for part in parts:
        total.add(part)
    if total.equal == total.total:
        return str(total.total)
    return f"{total.equal}/{total.total}, {total.near} near" + (f", {total.far} far" if total.far else "")
