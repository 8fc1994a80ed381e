"""How two layer dumps differ, as a table or as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from isobit.cli.terminal import line, print_json, table
from isobit.html_report import Cell, Column, Curve, curve, write_page
from isobit.html_report import table as html_table
from isobit.layer_dumps import LayerDump, TensorDifference, compare_dumps

_NUMBERS = ("equal", "largest", "steps", "dB")


def show_dump_differences(a: Path, b: Path, cap: int, *, as_json: bool, report: Path | None = None) -> bool:
    """Print how far two dumps are apart, tensor by tensor, and write a `report`; returns whether they differ."""
    differences = compare_dumps(LayerDump.load(a), LayerDump.load(b))
    differ = [found for found in differences if found.problem or found.equal < 1]
    if report is not None:
        _write_report(report, a, b, differences)
    if as_json:
        records = [_record(found) for found in differences]
        print_json({"a": str(a), "b": str(b), "tensors": len(differences), "differences": records})
        return bool(differ)
    if not differ:
        line(f"the same: {len(differences)} tensors")
        return False
    line(f"{len(differ)} of {len(differences)} tensors differ, in the order in which they are computed", style="bold")
    table(("tensor", *_NUMBERS), [_row(found) for found in differ[:cap]], right=_NUMBERS)
    if len(differ) > cap:
        line(f"... and {len(differ) - cap} more: --all lists them")
    return True


def _row(found: TensorDifference) -> tuple[str, str, str, str, str]:
    if found.problem:
        return found.name, found.problem, "", "", ""
    steps = "" if found.steps is None else f"{found.steps:.3g}"
    return found.name, f"{100 * found.equal:.1f} %", f"{found.largest:.3g}", steps, f"{found.decibels:.1f}"


def _write_report(report: Path, a: Path, b: Path, differences: Sequence[TensorDifference]) -> None:
    """All tensors as a table, and their decibels in the order in which they are computed."""
    rows: list[list[Cell]] = []
    for found in differences:
        name, *texts = _row(found)
        values = (found.equal, found.largest, found.steps, found.decibels)
        pairs = zip(texts, values, strict=True)
        rows.append([name, *((text, None if found.problem else value) for text, value in pairs)])
    points = [
        (float(index), found.decibels, f"{found.name}: {found.decibels:.1f} dB")
        for index, found in enumerate(differences)
        if not found.problem
    ]
    text = (
        "Power of A over that of the difference, tensor by tensor in the order of execution; equal ones are left out."
    )
    drawn = curve("How far apart", text, "tensor", "dB", [Curve("signal to difference", points, joined=True)])
    columns = [Column("tensor", "name"), *(Column(title, "number") for title in _NUMBERS)]
    found_table = html_table("Tensors", columns, rows, filter="Filter by name")
    first, second = told_apart(a, b)
    write_page(report, "isobit diff", f"A {first}, B {second}", [drawn, found_table])


def told_apart(a: Path, b: Path) -> tuple[str, str]:
    """The names of two files, with as many folders as tell them apart: many are called encodings.json."""
    for count in range(1, max(len(a.parts), len(b.parts))):
        first, second = (str(Path(*path.parts[-count:])) for path in (a, b))
        if first != second:
            return first, second
    return str(a), str(b)


def _record(found: TensorDifference) -> dict[str, object]:
    """The difference as plain data: JSON has no infinity."""
    finite = {name: value if value is None or math.isfinite(value) else str(value) for name, value in (
        ("largest", found.largest), ("steps", found.steps), ("decibels", found.decibels)
    )}  # fmt: skip
    return {"tensor": found.name, "problem": found.problem, "equal": found.equal, **finite}
