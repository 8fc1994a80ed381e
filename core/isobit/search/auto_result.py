"""What `auto_quantize` found, and how it came there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from os import PathLike
from typing import Any, Literal

from isobit.files import json_text, plain
from isobit.html_report import Column, Curve, Section, cards, curve, notes, table, write_page
from isobit.quantsim.judging.figures import Figures, by_name, figures_text
from isobit.quantsim.quantsim import QuantSim
from isobit.search.mixed_result import MixedPrecision

Outcome = Literal["holds", "does not hold", "failed"]


@dataclass(frozen=True)
class Attempt:
    """One way that was tried: why, and what came of it.

    `score` is what was measured of it, `drop` how much lower than the float model's that is, give or take `margin`;
    `sqnr` are decibels. They are None where it `failed`, and `result` says how. `figures` is what `evaluate` returned;
    of several by name the largest fall is the drop.
    """

    name: str
    why: str
    outcome: Outcome
    result: str
    score: float | None = None
    sqnr: float | None = None
    drop: float | None = None
    margin: float = 0.0
    seconds: float = 0.0
    figures: Figures | None = None


@dataclass(frozen=True, eq=False)
class AutoResult:
    """The first attempt that holds the drop, else the best: `sim` is what was measured.

    `measured_on` says in words what the scores are of. `mixed` is the curve of the search for formats, where it came
    to that.
    """

    sim: QuantSim = field(repr=False)
    chosen: Attempt
    holds: bool
    max_drop: float
    float_score: float
    attempts: tuple[Attempt, ...]
    why: str
    measured_on: str
    mixed: MixedPrecision | None = None
    notes: tuple[str, ...] = ()
    float_figures: Figures | None = None

    def to_dict(self) -> dict[str, Any]:
        """All but the simulator, as JSON can hold it."""
        found: dict[str, Any] = plain(
            {
                "holds": self.holds,
                "max_drop": self.max_drop,
                "float_score": self.float_score,
                "float_figures": self.float_figures,
                "measured_on": self.measured_on,
                "why": self.why,
                "chosen": asdict(self.chosen),
                "attempts": [asdict(attempt) for attempt in self.attempts],
                "mixed": None if self.mixed is None else self.mixed.to_dict(),
                "notes": self.notes,
            }
        )
        return found

    def to_json(self, path: str | PathLike[str] | None = None) -> str:
        """The same as text; written to `path` where one is given."""
        return json_text(self.to_dict(), path)

    def to_html(self, path: str | PathLike[str]) -> None:
        """Write a report, one HTML file that needs no network."""
        write_page(path, "isobit auto", f"at most {self.max_drop:g} lower than in float", self.sections())

    def sections(self) -> list[Section]:
        """The same as parts of a page, for a report that has more."""
        return _sections(self)

    def __str__(self) -> str:
        return "\n".join(_lines(self)) + "\n"


def _sections(result: AutoResult) -> list[Section]:
    figures = {
        "the drop that was asked": "holds" if result.holds else "does not hold",
        "drop": "not measured" if result.chosen.drop is None else f"{result.chosen.drop:.4g}",
        "score in float": f"{result.float_score:.6g}",
        "attempts": str(len(result.attempts)),
        "seconds": f"{sum(attempt.seconds for attempt in result.attempts):.0f}",
    }
    rows = [
        (
            attempt.name,
            attempt.outcome,
            ("" if attempt.drop is None else f"{attempt.drop:.4g}", attempt.drop),
            ("" if attempt.sqnr is None else f"{attempt.sqnr:.1f}", attempt.sqnr),
            (f"{attempt.seconds:.0f}", attempt.seconds),
            f"{attempt.result} ({attempt.why})",
        )
        for attempt in result.attempts
    ]
    columns = [Column("attempt"), Column("outcome")]
    columns += [Column(title, "number") for title in ("drop", "dB", "seconds")] + [Column("what came of it", "words")]
    made = [(attempt, number) for number, attempt in enumerate(result.attempts, 1) if attempt.drop is not None]
    drawn = Curve(
        "drop",
        [(number, attempt.drop or 0.0, f"{attempt.name}: {attempt.result}") for attempt, number in made],
        joined=True,
        chosen=next((index for index, (attempt, _) in enumerate(made) if attempt is result.chosen), None),
    )
    asked = Curve("asked", [(number, result.max_drop, "at most") for _, number in made], joined=True)
    sections = [
        cards(figures),
        notes("The choice", [result.why, f"Measured on {result.measured_on}.", *result.notes]),
        table("What was tried", columns, rows),
    ]
    if len(made) > 1:
        text = "How much the score fell in each attempt, in their order; the ring is the one that was taken."
        sections.append(curve("Attempts", text, "attempt", "drop", [drawn, asked]))
    if isinstance(result.float_figures, Mapping):
        sections.append(_figures_table(result))
    return [*sections, *([] if result.mixed is None else result.mixed.sections())]


def _figures_table(result: AutoResult) -> Section:
    """Each figure of `evaluate` in float and as it was chosen."""
    exact, chosen = by_name(result.float_figures or {}), by_name(result.chosen.figures or {})
    rows: list[tuple[str | tuple[str, float | None], ...]] = [
        (name, *((f"{number:.6g}", number) for number in (value, chosen[name], value - chosen[name])))
        for name, value in exact.items()
        if name in chosen
    ]
    columns = [Column("figure"), *(Column(title, "number") for title in ("float", result.chosen.name, "drop"))]
    return table("Figures of evaluate", columns, rows)


def _lines(result: AutoResult) -> Iterator[str]:
    yield result.why
    several = "" if result.float_figures is None else figures_text(result.float_figures)
    yield f"measured on {result.measured_on}; {several or f'{result.float_score:.6g}'} in float"
    yield ""
    for attempt in result.attempts:
        mark = ">" if attempt is result.chosen else " "
        yield f"{mark} {attempt.name} ({attempt.why}): {attempt.result}; {attempt.seconds:.0f} s"
    for note in result.notes:
        yield f"note: {note}"
    if result.mixed is not None:
        yield ""
        yield str(result.mixed).rstrip()
