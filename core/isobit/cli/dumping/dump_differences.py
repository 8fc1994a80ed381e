"""How two layer dumps differ, as a table or as JSON."""

from __future__ import annotations

import math
from pathlib import Path

from isobit.cli.terminal import line, print_json, table
from isobit.layer_dumps import LayerDump, TensorDifference, compare_dumps


def show_dump_differences(a: Path, b: Path, cap: int, *, as_json: bool) -> bool:
    """Print how far two dumps are apart, tensor by tensor; returns whether they differ."""
    differences = compare_dumps(LayerDump.load(a), LayerDump.load(b))
    differ = [found for found in differences if found.problem or found.equal < 1]
    if as_json:
        records = [_record(found) for found in differences]
        print_json({"a": str(a), "b": str(b), "tensors": len(differences), "differences": records})
        return bool(differ)
    if not differ:
        line(f"the same: {len(differences)} tensors")
        return False
    line(f"{len(differ)} of {len(differences)} tensors differ, in the order in which they are computed", style="bold")
    rows = [
        (found.name, found.problem, "", "", "")
        if found.problem
        else (
            found.name,
            f"{100 * found.equal:.1f} %",
            f"{found.largest:.3g}",
            "" if found.steps is None else f"{found.steps:.3g}",
            f"{found.decibels:.1f}",
        )
        for found in differ[:cap]
    ]
    table(("tensor", "equal", "largest", "steps", "dB"), rows, right=("equal", "largest", "steps", "dB"))
    if len(differ) > cap:
        line(f"... and {len(differ) - cap} more: --all lists them")
    return True


def _record(found: TensorDifference) -> dict[str, object]:
    """The difference as plain data: JSON has no infinity."""
    finite = {name: value if value is None or math.isfinite(value) else str(value) for name, value in (
        ("largest", found.largest), ("steps", found.steps), ("decibels", found.decibels)
    )}  # fmt: skip
    return {"tensor": found.name, "problem": found.problem, "equal": found.equal, **finite}
