"""A forecast: what would run in integers, how large the weights would be and how long a sample would take."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any

from isobit.files import json_text, plain
from isobit.forecast.float_pass import FloatPass
from isobit.forecast.recipe_cost import RecipeForecast
from isobit.html_report import Column, Section, cards, notes, table, write_page
from isobit.placement.coverage import Coverage

#: A file that is to be faster by less than this part is no faster: measured times scatter by as much.
_NO_GAIN = 0.03


@dataclass(frozen=True)
class NodeForecast:
    """One operation: `runs` is ``"integers"``, ``"weights in integers"`` or ``"float"``, and `why` says why not all.

    `multiply_adds` are those of one sample, open sizes as 1; bytes are those of its constants, before and after.
    """

    name: str
    op: str
    runs: str
    why: str
    multiply_adds: int
    bytes_before: float
    bytes_after: float


@dataclass(frozen=True)
class TimeForecast:
    """Milliseconds of one sample on one thread, by the table of costs of a `processor`.

    `without_times` counts operations, by op, that the table has no times of: they are 0 in both figures.
    """

    processor: str
    in_float: float
    quantized: float
    without_times: dict[str, int]

    @property
    def ratio(self) -> float:
        """The time of the quantized file over that of the float one; below 1 it is faster."""
        return self.quantized / self.in_float if self.in_float else 1.0

    def __str__(self) -> str:
        words = "no faster" if self.ratio > 1 - _NO_GAIN else f"{self.ratio:.2f} of the time in float"
        text = f"{words}, by the times of {self.processor} (estimate: {self.in_float:.3g} and {self.quantized:.3g} ms)"
        if self.without_times:
            some = ", ".join(f"{count} {op}" for op, count in self.without_times.items())
            text += f"; without the times of {some}, which the table does not have"
        return text


@dataclass(frozen=True)
class Forecast:
    """What quantizing would bring.

    `quantize` and `dequantize` count the tensors that are converted on the way, inputs and outputs among them. `times`
    are by each of the target's tables of costs, one a processor; where nothing can be said there are none, and
    `no_time` says why. `unknown` is what their ratios may be off by. `recipes` say what quantizing itself takes, by the
    time that a sample takes the float model, `float_pass`.
    """

    target: str
    coverage: Coverage
    nodes: tuple[NodeForecast, ...]
    quantize: int
    dequantize: int
    bytes_before: float
    bytes_after: float
    times: tuple[TimeForecast, ...]
    no_time: str
    unknown: tuple[str, ...]
    float_pass: FloatPass
    recipes: tuple[RecipeForecast, ...]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """All of it, as JSON can hold it."""
        found = asdict(self)
        for told, time in zip(found["times"], self.times, strict=True):
            told["ratio"] = time.ratio
        return {key: plain(value) for key, value in found.items()}

    def to_json(self, path: str | PathLike[str] | None = None) -> str:
        """The same as text; written to `path` where one is given."""
        return json_text(self.to_dict(), path)

    def to_html(self, path: str | PathLike[str]) -> None:
        """Write a report, one HTML file that needs no network."""
        write_page(path, "isobit plan", f"target {self.target}, without data", _sections(self))

    def __str__(self) -> str:
        runs = Counter(node.runs for node in self.nodes)
        operations = ", ".join(f"{runs[kind]} {kind}" for kind in ("integers", "weights in integers", "float"))
        lines = [
            f"target       {self.target}",
            f"coverage     {self.coverage}",
            f"operations   {operations}",
            f"conversions  {self.quantize} to integers, {self.dequantize} to float",
            f"weights      {self.bytes_before / 1e6:.3g} MB in float, {self.bytes_after / 1e6:.3g} MB quantized",
            *(f"time         {text}" for text in _time_lines(self)),
        ]
        lines += [f"  unknown    {text}" for text in self.unknown]
        lines += _recipe_lines(self)
        return "\n".join([*lines, *(f"note         {note}" for note in self.notes)])


def _time_lines(found: Forecast) -> list[str]:
    return [str(time) for time in found.times] or [found.no_time]


def _recipe_lines(found: Forecast) -> list[str]:
    """What each recipe takes, and what the figures rest on."""
    if not found.recipes:
        return []
    width = max(len(recipe.recipe) for recipe in found.recipes)
    samples = f"{found.recipes[0].samples} samples"
    lines = [f"recipes      with {samples}; {found.float_pass}"]
    for recipe in found.recipes:
        own = recipe.not_told if found.float_pass.milliseconds is not None else ""  # else it is the reason for all
        lines.append(f"  {recipe.recipe:<{width}}  {recipe}" + (f", time and memory not told: {own}" if own else ""))
    return lines


def _share(coverage: Coverage) -> str:
    total = coverage.multiply_adds
    return f"{100 * coverage.integer_multiply_adds / total:.1f} %" if total else "none"


def _sections(found: Forecast) -> list[Section]:
    runs = Counter(node.runs for node in found.nodes)
    figures = {
        "of the multiply-adds in integers": _share(found.coverage),
        "operations in integers": f"{runs['integers']} of {len(found.nodes)}",
        "weights": f"{found.bytes_before / 1e6:.3g} MB → {found.bytes_after / 1e6:.3g} MB",
        "conversions to integers + to float": f"{found.quantize} + {found.dequantize}",
        "time, of that in float": " / ".join(f"{time.ratio:.2f}" for time in found.times) or "not told",
    }
    rows = [
        (
            node.name,
            node.op,
            node.runs,
            (f"{node.multiply_adds:,}", node.multiply_adds),
            (f"{node.bytes_before / 1e3:,.1f}", node.bytes_before),
            (f"{node.bytes_after / 1e3:,.1f}", node.bytes_after),
            node.why,
        )
        for node in found.nodes
    ]
    numbers = [Column(title, "number") for title in ("multiply-adds", "kB before", "kB after")]
    columns = (Column("operation", "name"), Column("op"), Column("runs in"), *numbers, Column("why not", "words"))
    return [
        cards(figures),
        notes("Time", [*_time_lines(found), *found.unknown]),
        notes("Recipes", [line.strip() for line in _recipe_lines(found)]),
        table("Operations", columns, rows, filter="Filter by name, op, reason"),
        *([notes("Notes", found.notes)] if found.notes else []),
    ]
