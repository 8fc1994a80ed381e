"""The options of `isobit analyze` beside those of `isobit quantize`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Measuring(StrEnum):
    """How every site is measured."""

    on = "on"
    off = "off"


_ANALYSIS = "Analysis"

AnalyzedData = Annotated[
    Path,
    typer.Option(
        "--data", metavar="PATH", show_default=False, help="Calibration data as of `isobit quantize`; judged too."
    ),
]
SecondData = Annotated[
    Path | None,
    typer.Option(
        "--second",
        metavar="PATH",
        rich_help_panel=_ANALYSIS,
        help="Other data, as from the field: says which ranges it would move and what that costs.",
    ),
]
AnalyzedSamples = Annotated[
    int,
    typer.Option(
        "--analyzed", metavar="N", min=1, rich_help_panel=_ANALYSIS, help="Samples on which errors are measured."
    ),
]
Checks = Annotated[
    int,
    typer.Option(
        "--checks", metavar="N", min=0, rich_help_panel=_ANALYSIS, help="Suggestions that are tried on these samples."
    ),
]
Measure = Annotated[
    Measuring | None,
    typer.Option(
        "--measure",
        rich_help_panel=_ANALYSIS,
        help="Measure every site alone on, or alone off: one run each, in place of the worst ones off.",
    ),
]
Most = Annotated[
    int, typer.Option("--most", metavar="N", min=1, rich_help_panel=_ANALYSIS, help="Lines of each list, at most.")
]
Evaluate = Annotated[
    Path | None,
    typer.Option(
        "--evaluate",
        metavar="PATH",
        rich_help_panel=_ANALYSIS,
        help="Measured too: an .npz with labels (top-1 accuracy; label_NAME for output NAME), "
        "or a .py with a function evaluate(model).",
    ),
]
