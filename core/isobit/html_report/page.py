"""A page of sections as text: the data as JSON, and the style and the script that draw them, all in one file."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Literal

from isobit.files import plain, write_atomically

#: What a cell shows, or that and what it is sorted by.
Cell = str | tuple[str, float | None]

#: ``"number"`` stands right, ``"name"`` is cut, ``"words"`` are broken into lines.
ColumnKind = Literal["", "number", "name", "words"]


@dataclass(frozen=True)
class Section:
    """One part of a page: `kind` names what draws it in ``page.js``, from `content`; two with `half` stand in a row."""

    kind: str
    title: str
    content: Mapping[str, Any]
    half: bool = False


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    title: str
    kind: ColumnKind = ""


@dataclass(frozen=True)
class Curve:
    """Points (x, y, what is said of it) of one kind; `chosen` is the number of the one that was taken."""

    name: str
    points: Sequence[tuple[float, float, str]]
    joined: bool = False
    chosen: int | None = None


def cards(items: Mapping[str, str]) -> Section:
    """Large figures with their names below."""
    return Section("cards", "", {"items": [(value, name) for name, value in items.items()]})


def table(
    title: str,
    columns: Sequence[Column],
    rows: Sequence[Sequence[Cell]],
    *,
    filter: str = "",
    none: str = "Nothing.",
    half: bool = False,
    plots: Sequence[Mapping[str, Any]] = (),
) -> Section:
    """A table that sorts; with a text for `filter`, one of which rows can be searched for.

    With `plots`, one for each row as `TensorPlot.to_dict` gives it, that of the row which is chosen is drawn below.
    """
    content = {
        "columns": [(column.title, column.kind) for column in columns],
        "rows": rows,
        "filter": filter,
        "none": none,
        "plots": list(plots),
    }
    return Section("table", title, content, half)


def curve(title: str, text: str, x: str, y: str, series: Sequence[Curve]) -> Section:
    """Points in the plane, of up to three kinds; what is not finite is left out."""
    drawn = []
    for kind in series:
        points = [
            {"x": px, "y": py, "words": words, "chosen": index == kind.chosen}
            for index, (px, py, words) in enumerate(kind.points)
            if plain(px) is not None and plain(py) is not None
        ]
        if points:
            drawn.append({"name": kind.name, "joined": kind.joined, "points": points})
    return Section("curve", title, {"text": text, "x": x, "y": y, "series": drawn})


def notes(title: str, lines: Sequence[str], *, half: bool = False) -> Section:
    """Lines of text."""
    return Section("notes", title, {"lines": list(lines)}, half)


def page_text(title: str, about: str, sections: Sequence[Section]) -> str:
    """The page.

    Names come from the user's model: the page shows them as text, and nothing in them can end the element of the data.
    """
    shown = [
        {"kind": section.kind, "title": section.title, "half": section.half, "content": section.content}
        for section in sections
    ]
    text = json.dumps(
        plain({"title": title, "about": about, "sections": shown}), allow_nan=False, separators=(",", ":")
    )
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    folder = files("isobit.html_report")
    page = folder.joinpath("page.html").read_text("utf-8")
    for part in ("style", "script"):
        name = "page.css" if part == "style" else "page.js"
        page = page.replace(f"__{part.upper()}__", folder.joinpath(name).read_text("utf-8"))
    return page.replace("__TITLE__", html.escape(title)).replace("__DATA__", text)


def write_page(path: str | PathLike[str], title: str, about: str, sections: Sequence[Section]) -> None:
    """Write the page, whole or not at all. Raises OutputError."""
    with write_atomically(Path(fspath(path))) as temporary:
        temporary.write_text(page_text(title, about, sections), "utf-8")
