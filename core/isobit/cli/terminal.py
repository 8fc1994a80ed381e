"""Where the command prints: results on standard output, errors and progress on standard error."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def output() -> Console:
    """The console of results. Made on each use, because tests swap the streams."""
    from rich.console import Console

    # Output to a file or a pipe has no window of 80 columns, and broken rows could not be searched.
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160
    return Console(highlight=False, emoji=False, width=width)


def complain(message: str, label: str = "error: ") -> None:
    """One red line on standard error."""
    from rich.console import Console
    from rich.text import Text

    line = Text(label + " ".join(message.split("\n")), style="red")
    Console(stderr=True, highlight=False, emoji=False).print(line, soft_wrap=True)


def warn(message: str) -> None:
    """One yellow line on standard error."""
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True, highlight=False, emoji=False).print(
        Text(f"warning: {message}", style="yellow"), soft_wrap=True
    )


def line(text: str = "", style: str = "") -> None:
    """A line of results, never broken and never read as markup: names hold brackets."""
    from rich.text import Text

    output().print(Text(text, style=style), soft_wrap=True)


def print_json(data: Any) -> None:
    """Machine-readable results."""
    print(json.dumps(data, indent=2, default=str, allow_nan=False))


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = ()) -> None:
    """A table; columns named in `right` hold numbers. Without any column title there is no header."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=any(columns))
    for column in columns:
        grid.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(Text(cell) for cell in row))
    output().print(grid)


def capped(items: Sequence[str], cap: int, rest: str) -> list[str]:
    """At most `cap` items; `rest` is the line for the others, with ``{count}`` for their number."""
    if len(items) <= cap:
        return list(items)
    return [*items[:cap], rest.format(count=len(items) - cap)]
