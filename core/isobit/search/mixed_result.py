"""What a search for formats found: the whole curve of cost against error, the choice, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from os import PathLike
from typing import Any

from isobit.files import json_text, plain
from isobit.html_report import Column, Curve, Section, cards, curve, notes, table, write_page
from isobit.quantsim.judging.figures import Figures, figures_text
from isobit.quantsim.quantsim import QuantSim

#: Characters of a name in a line.
_NAME = 60


@dataclass(frozen=True)
class Point:
    """One choice of formats: `formats` by group. `cost` is in the unit of the curve.

    `predicted` are decibels at the output; `sqnr` and `score` what was measured, None where nothing was; `drop` is how
    much lower than the float model's the score is, give or take `margin`. `figures` is what `evaluate` returned.
    """

    formats: Mapping[str, str]
    cost: float
    predicted: float
    sqnr: float | None = None
    score: float | None = None
    drop: float | None = None
    margin: float = 0.0
    figures: Figures | None = None

    @property
    def is_measured(self) -> bool:
        """Whether the model was run with these formats."""
        return self.score is not None

    def holds(self, max_drop: float) -> bool:
        """Whether it was measured, and loses so much at most, whatever the noise of the measure."""
        return self.drop is not None and self.drop + self.margin <= max_drop + 1e-12


@dataclass(frozen=True)
class GroupFormat:
    """One group: its format and why; `share` of the error in the format that it came with; what it consists of."""

    name: str
    format: str
    why: str
    share: float
    sites: tuple[str, ...]
    nodes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class MixedPrecision:
    """The formats that were chosen. `sim` is the simulator with them, the one that was measured.

    `curve` are the points of least cost for their noise, the cheapest first, each the solution of an integer program;
    `chosen` is one of them. `goal` says what was asked, `holds` whether it is met;
    `runs` how often each model was evaluated for its score.
    """

    sim: QuantSim = field(repr=False)
    curve: tuple[Point, ...]
    chosen: Point
    groups: tuple[GroupFormat, ...]
    unit: str
    goal: str
    holds: bool
    why: str
    float_score: float
    evaluations: int
    overrides: Mapping[str, str | None]
    runs: int = 1
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """All but the simulator, as JSON can hold it: what is not finite is None."""
        found: dict[str, Any] = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "sim"}
        found["curve"] = [_record(point) for point in self.curve]
        found["chosen"] = _record(self.chosen)
        found["groups"] = [_record(group) for group in self.groups]
        return {key: plain(value) for key, value in found.items()}

    def to_json(self, path: str | PathLike[str] | None = None) -> str:
        """The same as text; written to `path` where one is given."""
        return json_text(self.to_dict(), path)

    def to_html(self, path: str | PathLike[str]) -> None:
        """Write a report, one HTML file that needs no network."""
        write_page(path, "isobit mixed precision", self.goal, self.sections())

    def sections(self) -> list[Section]:
        """The same as parts of a page, for a report that has more."""
        return _sections(self)

    def __str__(self) -> str:
        return "\n".join(_lines(self)) + "\n"


def _record(item: Any) -> dict[str, Any]:
    return {entry.name: getattr(item, entry.name) for entry in fields(item)}


def _short(name: str) -> str:
    """Both ends of a long name."""
    return name if len(name) <= _NAME else f"{name[: _NAME // 2 - 2]}...{name[-_NAME // 2 + 2 :]}"


def _sections(found: MixedPrecision) -> list[Section]:
    cheapest = found.curve[0].cost or 1.0
    chosen = found.curve.index(found.chosen)
    told = [(point.cost / cheapest, point.predicted, _words(point)) for point in found.curve]
    run = [
        (point.cost / cheapest, point.sqnr, _words(point), point is found.chosen)
        for point in found.curve
        if point.sqnr is not None
    ]
    at = next((index for index, entry in enumerate(run) if entry[3]), None)
    figures = {
        "cost of the choice, the cheapest being 1": f"{found.chosen.cost / cheapest:.3g}",
        "drop": "not measured" if found.chosen.drop is None else f"{found.chosen.drop:.4g}",
        "score in float": f"{found.float_score:.6g}",
        "signal to noise": f"{found.chosen.predicted if found.chosen.sqnr is None else found.chosen.sqnr:.1f} dB",
        "models that were run": str(found.evaluations),
    }
    drawn = curve(
        "Cost against error",
        f"Each point is one choice of formats; the ring is the one that was taken. Cost 1 is {cheapest:.4g} "
        f"{found.unit}.",
        "cost, the cheapest being 1",
        "dB at the output",
        [
            Curve("predicted", told, joined=True, chosen=None if at is not None else chosen),
            Curve("measured", [entry[:3] for entry in run], chosen=at),
        ],
    )
    rows = [
        (group.name, group.format, (f"{100 * group.share:.3g} %", group.share), group.why) for group in found.groups
    ]
    columns = (
        Column("group", "name"),
        Column("format"),
        Column("share of the error", "number"),
        Column("why", "words"),
    )
    groups = table("Formats of groups of layers", columns, rows, filter="Filter by name, format, reason")
    return [cards(figures), notes("The choice of formats", [found.why, *found.notes]), drawn, groups]


def _words(point: Point) -> str:
    """What is said of a point where it is pointed at."""
    counts = ", ".join(f"{count} {name}" for name, count in Counter(point.formats.values()).items())
    drop = "" if point.drop is None else f", drop {point.drop:.4g}"
    several = "" if point.figures is None else figures_text(point.figures)
    return f"{counts}; {point.predicted:.1f} dB predicted{drop}{f' ({several})' if several else ''}"


def _lines(found: MixedPrecision) -> Iterator[str]:
    yield found.why
    yield ""
    cheapest = found.curve[0].cost or 1.0
    yield f"      cost  predicted   measured       drop   formats          (cost 1.00: {cheapest:.4g} {found.unit})"
    for point in found.curve:
        mark = ">" if point is found.chosen else " "
        measured = "" if point.sqnr is None else f"{point.sqnr:.1f} dB"
        drop = "" if point.drop is None else f"{point.drop:.4g}" + (f"±{point.margin:.2g}" if point.margin else "")
        counts = ", ".join(f"{count} {name}" for name, count in Counter(point.formats.values()).items())
        relative = point.cost / cheapest
        yield f"{mark} {relative:8.3f} {point.predicted:7.1f} dB {measured:>10} {drop:>10}   {counts}"
    wide = [group for group in found.groups if group.why]
    if wide:
        yield ""
        for group in wide:
            yield f"{group.format:>8}  {_short(group.name)}: {group.why}"
    for note in found.notes:
        yield f"note: {note}"
