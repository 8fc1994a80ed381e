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
    """One red line on standard error, broken between words where a terminal is narrower."""
    _print_error(label + " ".join(message.split("\n")), "red")


def warn(message: str) -> None:
    """One yellow line on standard error, broken between words where a terminal is narrower."""
    _print_error(f"warning: {message}", "yellow")


def _print_error(text: str, style: str) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, highlight=False, emoji=False)
    console.print(Text(_wrapped(text, console), style=style), soft_wrap=True)


def line(text: str = "", style: str = "", *, is_command: bool = False) -> None:
    """A line of results, never read as markup: names hold brackets.

    A terminal that is narrower gets it in several, broken between words. A command is left whole, to be copied.
    """
    from rich.text import Text

    console = output()
    console.print(Text(text if is_command else _wrapped(text, console), style=style), soft_wrap=True)


def _wrapped(text: str, console: Console) -> str:
    """The text with breaks between words where it is for a terminal; further lines are indented by two more."""
    if not console.file.isatty() or len(text) <= console.width:
        return text
    import textwrap

    margin = " " * (len(text) - len(text.lstrip(" ")))
    return textwrap.fill(
        text,
        console.width,
        subsequent_indent=f"{margin}  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def print_json(data: Any) -> None:
    """Machine-readable results."""
    print(json.dumps(data, indent=2, default=str, allow_nan=False))


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = ()) -> None:
    """A table; columns named in `right` hold numbers. Without any column title there is no header.

    Cells are broken between words alone, so that names can be read and searched. Where that does not fit the width, the
    column ``name`` gets lines of its own above the others; where not even that fits, every cell gets one.
    """
    from rich.text import Text

    console, cells = output(), [tuple(row) for row in rows]
    titles = [tuple(columns)] if any(columns) else []
    widths, apart = _widths([*titles, *cells], console.width), None
    if "name" in columns and (widths is None or widths[columns.index("name")] > console.width // 2):
        apart = columns.index("name")
        titles, others = [_without(row, apart) for row in titles], [_without(row, apart) for row in cells]
        widths = _widths([*titles, *others], console.width - len(_INDENT))
    if widths is None:
        _blocks(columns, cells, apart or 0)
        return
    shown = columns if apart is None else _without(columns, apart)
    indent = "" if apart is None else _INDENT
    console.print()
    for title in titles:
        for text in _laid_out(title, widths, shown, right):
            console.print(Text(indent + text, style="bold"), soft_wrap=True)
        console.print(Text(indent + "─" * (sum(widths) + len(_GAP) * (len(widths) - 1))), soft_wrap=True)
    for row in cells:
        texts = _laid_out(row if apart is None else _without(row, apart), widths, shown, right)
        for text in texts if apart is None else [row[apart], *(indent + text for text in texts)]:
            console.print(Text(text), soft_wrap=True)
    console.print()


_GAP, _INDENT = "  ", "  "


def _without(row: Sequence[str], index: int) -> tuple[str, ...]:
    return (*row[:index], *row[index + 1 :])


def _widths(rows: Sequence[Sequence[str]], available: int) -> list[int] | None:
    """Columns as wide as their words need and the width allows, the widest narrowed; None where that is too wide."""
    columns = list(zip(*rows, strict=True))
    widths = [max(len(line) for cell in column for line in cell.split("\n")) for column in columns]
    least = [max(len(word) for cell in column for word in cell.split() or [""]) for column in columns]
    room = available - len(_GAP) * (len(columns) - 1)
    if sum(least) > room:
        return None
    while sum(widths) > room:
        index = max(range(len(widths)), key=lambda i: (widths[i] > least[i], widths[i]))
        widths[index] -= 1
    return widths


def _laid_out(row: Sequence[str], widths: Sequence[int], columns: Sequence[str], right: Sequence[str]) -> list[str]:
    """The lines of one row."""
    import textwrap

    cells = [
        [part for text in cell.split("\n") for part in textwrap.wrap(text, width, break_on_hyphens=False) or [""]]
        if any(len(text) > width for text in cell.split("\n"))
        else cell.split("\n")
        for cell, width in zip(row, widths, strict=True)
    ]
    lines = []
    for number in range(max(map(len, cells), default=0)):
        parts = [cell[number] if number < len(cell) else "" for cell in cells]
        padded = (
            part.rjust(width) if column in right else part.ljust(width)
            for part, width, column in zip(parts, widths, columns, strict=True)
        )
        lines.append(_GAP.join(padded).rstrip())
    return lines


def _blocks(columns: Sequence[str], rows: Sequence[Sequence[str]], first: int) -> None:
    """Each row as one of its cells, and a line for each of the others."""
    titles = max(map(len, columns), default=0)
    for row in rows:
        line(row[first])
        for title, cell in zip(_without(columns, first), _without(row, first), strict=True):
            if cell:
                line(f"{_INDENT}{title:<{titles}}  {cell}")


def capped(items: Sequence[str], cap: int, rest: str) -> list[str]:
    """At most `cap` items; `rest` is the line for the others, with ``{count}`` for their number."""
    if len(items) <= cap:
        return list(items)
    return [*items[:cap], rest.format(count=len(items) - cap)]
