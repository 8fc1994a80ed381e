"""CompressionReport: what was made smaller and what it costs in accuracy, as data and in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from os import PathLike
from typing import Any

from isobit.budget import UNITS, Cost, CurvePoint
from isobit.files import json_text, plain
from isobit.html_report import Column, Curve, Section, cards, curve, notes, table, write_page


@dataclass(frozen=True)
class CompressedLayer:
    """What was done to a layer, or to a group of coupled ones under the name of the first.

    `before` and `after` are its cost in the unit of the budget; `error` is the power of the error of its output as a
    share of that of the output, of the weights where `from_data` is false.
    """

    name: str
    method: str
    words: str
    before: float
    after: float
    error: float
    from_data: bool


@dataclass(frozen=True)
class Trial:
    """One choice of sizes that was carried out and judged: by `evaluate`, or by the decibels of the outputs."""

    words: str
    score: float
    keep: float
    chosen: bool = False


@dataclass(frozen=True)
class CompressionReport:
    """What `isobit.compress` did.

    `asked` and `kept` are shares of the cost in `unit`; `before` and `after` what the network costs for one sample.
    `curve` is the least loss that choices allow at other shares, for the first method or those that share layers with
    it. `judged_by` is ``"evaluate"``, ``"outputs"`` (dB) or an empty text; `score_before` is what evaluate says of the
    network as it came.
    """

    methods: tuple[str, ...]
    unit: str
    asked: float
    kept: float
    before: Cost
    after: Cost
    layers: tuple[CompressedLayer, ...] = ()
    left: Mapping[str, str] = field(default_factory=dict)
    curve: tuple[CurvePoint, ...] = ()
    layer_curves: Mapping[str, tuple[tuple[float, float], ...]] = field(default_factory=dict)
    trials: tuple[Trial, ...] = ()
    judged_by: str = ""
    score_before: float | None = None
    evaluations: int = 0
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """All of it, as JSON can hold it."""
        return {key: plain(value) for key, value in asdict(self).items()}

    def to_json(self, path: str | PathLike[str] | None = None) -> str:
        """The same as text; written to `path` where one is given."""
        return json_text(self.to_dict(), path)

    def to_html(self, path: str | PathLike[str]) -> None:
        """Write a report, one HTML file that needs no network."""
        write_page(path, "isobit compression", ", ".join(self.methods) or "a recipe", _sections(self))

    def text(self, most: int = 40) -> str:
        """In words: what the network costs, then layer by layer, then what was left and why."""
        return "\n".join(_lines(self, most)) + "\n"

    def __str__(self) -> str:
        return self.text()


def _sections(report: CompressionReport) -> list[Section]:
    figures = {f"of the {report.unit} kept": f"{report.kept:.1%}", "asked": f"{report.asked:.1%}"}
    for unit in UNITS:
        if unit != report.unit and report.before.of(unit) > 0:
            figures[f"of the {unit} kept"] = f"{report.after.of(unit) / report.before.of(unit):.1%}"
    by_outputs = report.judged_by != "evaluate"
    trials = [
        (
            trial.words + (" (taken)" if trial.chosen else ""),
            (f"{trial.keep:.1%}", trial.keep),
            (f"{trial.score:.1f} dB" if by_outputs else f"{trial.score:.6g}", trial.score),
        )
        for trial in report.trials
    ]
    layers = [
        (
            layer.name,
            layer.words,
            (number(layer.before), layer.before),
            (number(layer.after), layer.after),
            (f"{layer.error:.2%}", layer.error),
            "outputs" if layer.from_data else "weights",
        )
        for layer in report.layers
    ]
    numbers = [Column(title, "number") for title in (f"{report.unit} before", "after", "error")]
    points = [(point.keep, point.loss, f"{point.keep:.1%} kept, loss {point.loss:.3g}") for point in report.curve]
    drawn = curve(
        "The least loss at each share of the cost",
        f"The sum of -log(1 - error) over all layers, by the share of {report.unit} that is kept: an estimate from "
        "covariances, before anything is run.",
        f"share of {report.unit} kept",
        "loss",
        [Curve("least loss", points, joined=True)],
    )
    return [
        cards(figures),
        *([drawn] if points else []),
        table(
            "Choices that were judged", (Column("choice"), Column("kept", "number"), Column("score", "number")), trials
        ),
        table(
            "What was made smaller",
            (Column("layer", "name"), Column("what", "words"), *numbers, Column("of the")),
            layers,
            filter="Filter by name",
        ),
        table("What stayed whole", (Column("layer", "name"), Column("why", "words")), list(report.left.items())),
        *([notes("Notes", list(report.notes))] if report.notes else []),
    ]


def cost_lines(before: Cost, after: Cost | None = None) -> Iterator[str]:
    """What a network costs, a line for each unit that counts something."""
    for unit in UNITS:
        was = before.of(unit)
        if was > 0:
            now = "" if after is None else f" -> {number(after.of(unit))} ({after.of(unit) / was:.1%})"
            yield f"{unit:<13}{number(was)}{now}"


def number(value: float) -> str:
    """Three digits and a word of the size."""
    for size, word in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{word}"
    return f"{value:.3g}"


def _lines(report: CompressionReport, most: int) -> Iterator[str]:
    methods = ", ".join(report.methods) or "a recipe"
    yield f"{methods}: {report.kept:.1%} of the {report.unit} are kept" + (
        f" ({report.asked:.1%} were asked for)" if report.asked != report.kept else ""
    )
    for line in cost_lines(report.before, report.after):
        yield f"  {line}"
    if report.score_before is not None:
        yield f"  evaluate: {report.score_before:.6g} before"
    for trial in report.trials:
        figure = f"{trial.score:.6g}" if report.judged_by == "evaluate" else f"{trial.score:.1f} dB"
        yield f"  {figure} {trial.words} at {trial.keep:.1%}" + (" (taken)" if trial.chosen else "")
    if report.layers:
        yield ""
        yield "what was made smaller"
        for layer in report.layers[:most]:
            of = "output" if layer.from_data else "weights"
            cost = f"{number(layer.before)} -> {number(layer.after)} {report.unit}"
            yield f"  {layer.name}: {layer.words}, {cost}, error of the {of} {layer.error:.2%}"
        if len(report.layers) > most:
            yield f"  and {len(report.layers) - most} more"
    if report.left:
        yield ""
        yield "what stayed whole"
        for name, why in list(report.left.items())[:most]:
            yield f"  {name}: {why}"
        if len(report.left) > most:
            yield f"  and {len(report.left) - most} more"
    for note in report.notes:
        yield f"note: {note}"
