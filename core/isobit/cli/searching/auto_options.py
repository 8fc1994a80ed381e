"""The options of `isobit auto` beside those of `isobit quantize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_SEARCH = "Search"

Evaluate = Annotated[
    Path | None,
    typer.Option(
        "--evaluate",
        metavar="PATH",
        help="What is to be kept: an .npz with an array 'label' or 'labels' (top-1 accuracy of the first output; "
        "label_NAME for output NAME), or a .py with a function evaluate(model), "
        "where model(batch) gives the outputs by name; agreement with the float "
        "model on a part of --data unless said.",
    ),
]
MaxDrop = Annotated[
    float,
    typer.Option("--max-drop", metavar="X", min=0.0, help="How much the score may fall; 0.01 is a point of accuracy."),
]
Minutes = Annotated[
    float | None,
    typer.Option(
        "--minutes", metavar="N", rich_help_panel=_SEARCH, help="End after so long, with the best until then."
    ),
]
JournalFile = Annotated[
    Path | None,
    typer.Option(
        "--journal",
        metavar="FILE",
        rich_help_panel=_SEARCH,
        help="Go on from this file, and write there what is found.",
    ),
]
Candidates = Annotated[
    list[str] | None,
    typer.Option(
        "--candidate",
        metavar="FORMAT",
        rich_help_panel=_SEARCH,
        help="A format that layers may get, as int16, 'uint16 x int8' or float. Repeatable.",
    ),
]
Cost = Annotated[
    str,
    typer.Option("--cost", metavar="NAME", rich_help_panel=_SEARCH, help="Costs: bits, bytes or milliseconds."),
]
Evaluations = Annotated[
    int,
    typer.Option(
        "--evaluations", metavar="N", min=1, rich_help_panel=_SEARCH, help="Choices of formats that are measured."
    ),
]
AutoJson = Annotated[
    Path | None, typer.Option("--write-json", metavar="FILE", rich_help_panel=_SEARCH, help="Write all that was tried.")
]
