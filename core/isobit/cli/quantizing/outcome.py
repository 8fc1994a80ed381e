"""What `isobit quantize` reports: as a table for people, as JSON for programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from math import nan
from pathlib import Path

from isobit.cli.quantizing.evaluation import Evaluation
from isobit.cli.quantizing.gains import gain_lines
from isobit.cli.quantizing.latency import Latency
from isobit.cli.terminal import capped, line, print_json, table
from isobit.files import plain
from isobit.html_report import Column, Section, notes
from isobit.html_report import table as html_table
from isobit.placement.coverage import Coverage
from isobit.placement.plan import Plan
from isobit.quantsim.checks.quality import judged
from isobit.quantsim.judging.figures import Figures, by_name

_FLOATS_SHOWN, _NAMES_SHOWN, _OUTPUTS_SHOWN, _NOTES_SHOWN = 8, 4, 4, 12

Row = tuple[str, str, str, str]


@dataclass
class Outcome:
    """Everything that was measured and written."""

    formats: str
    target: str
    calibration: str
    evaluation: Evaluation | None = None
    scores: dict[str, Figures] = field(default_factory=dict)  # by the user's own measure, float and simulated
    float_bytes: int | None = None
    quantized_bytes: int | None = None
    tidied_bytes: int | None = None  # of the network in float as isobit writes it, where that was measured
    latency: Latency | None = None
    coverage: Coverage | None = None
    sqnr: dict[str, float] = field(default_factory=dict)  # on one batch of calibration, dB by output and by part of one
    checks: list[str] = field(default_factory=list)  # the written file against the simulator, a line a session
    is_poor: bool = False
    next_command: str | None = None  # what to try where the result is poor; None where all was tried
    files: dict[str, Path] = field(default_factory=dict)
    left_in_float: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def format_label(plan: Plan) -> str:
    """``uint8 x int8``: the formats of activations and weights as they were placed."""
    if not plan.placements:
        return "all in float"
    return f"{_types(plan, 'activation')} x {_types(plan, 'weight')}"


def _types(plan: Plan, kind: str) -> str:
    names = dict.fromkeys(placement.spec.type_name for placement in plan.placements.values() if placement.kind == kind)
    return "/".join(names) or "float" if len(names) <= 3 else "mixed"


def print_outcome(outcome: Outcome, as_json: bool) -> None:
    """Print it."""
    if as_json:
        print_json(plain(asdict(outcome)))
        return
    columns = ("", "FP32", outcome.formats, "change")
    table(columns, list(_rows(outcome)), right=columns[1:])
    for text in _captions(outcome):
        line(text, style="dim")
    if outcome.is_poor and outcome.next_command is not None:
        line("the result is poor; try", style="yellow")
        line(f"  {outcome.next_command}", style="yellow", is_command=True)
    elif outcome.is_poor:
        line("the result is poor: leave layers in float with --exclude, the first and the last to begin with", "yellow")
    line()
    for label, path in outcome.files.items():
        line(f"{label:<10} {path}")
    summary = outcome.files.get("summary", "summary.txt")
    if outcome.left_in_float:
        line()
        line(f"left in float ({len(outcome.left_in_float)})")
        items = [f"  {', '.join(names)}: {reason}" for reason, names in _by_reason(outcome.left_in_float).items()]
        for text in capped(items, _FLOATS_SHOWN, f"  ... and {{count}} more, in {summary}"):
            line(text)
    for text in capped(outcome.notes, _NOTES_SHOWN, f"... and {{count}} more notes, in {summary}"):
        line(f"note: {text}")


def outcome_sections(outcome: Outcome) -> list[Section]:
    """The same as parts of a page."""
    columns = [Column("", "words"), *(Column(title, "number") for title in ("FP32", outcome.formats, "change"))]
    return [
        html_table("What it costs, and what it brings", columns, list(_rows(outcome))),
        notes("How that was measured", [*_captions(outcome), *outcome.notes], half=True),
        html_table("Files", (Column("what"), Column("path", "words")), _file_rows(outcome), half=True),
    ]


def _file_rows(outcome: Outcome) -> list[tuple[str, str]]:
    return [(label, str(path)) for label, path in outcome.files.items()]


def _by_reason(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    """The names that have each reason, a few of them."""
    groups: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        groups.setdefault(reason, []).append(name)
    return {reason: capped(names, _NAMES_SHOWN, "and {count} more") for reason, names in groups.items()}


def _rows(outcome: Outcome) -> Iterator[Row]:
    if outcome.evaluation is not None:
        yield from _evaluation_rows(outcome.evaluation)
    if outcome.scores:
        before, after = by_name(outcome.scores["float"]), by_name(outcome.scores["simulated"])
        for name in {**before, **after}:
            exact, now = before.get(name, nan), after.get(name, nan)
            yield f"{name or 'evaluate'}, simulated", f"{exact:.6g}", f"{now:.6g}", f"{now - exact:+.4g}"
    evaluated = outcome.evaluation.sqnr if outcome.evaluation is not None else {}
    for name, ratio in [item for item in outcome.sqnr.items() if item[0] not in evaluated][:_OUTPUTS_SHOWN]:
        yield f"SQNR of {name}, calibration batch", "-", judged(ratio), ""
    if outcome.quantized_bytes is not None:
        float_size, quantized_size = outcome.float_bytes, outcome.quantized_bytes
        yield (
            "model size",
            "-" if float_size is None else _bytes(float_size),
            _bytes(quantized_size),
            _ratio(quantized_size, float_size),
        )
    if outcome.latency is not None:
        before_ms, time_ratio = outcome.latency.float_ms, outcome.latency.ratio
        before_text = "-" if before_ms is None else f"{before_ms:.3g} ms"
        ratio_text = "" if time_ratio is None else f"{time_ratio:.2f}x"
        yield "latency", before_text, f"{outcome.latency.quantized_ms:.3g} ms", ratio_text


def _evaluation_rows(result: Evaluation) -> Iterator[Row]:
    exact = result.float_accuracy
    if exact is not None:
        for where, share in (("simulated", result.simulated_accuracy), ("exported file", result.exported_accuracy)):
            if share is not None:
                yield f"accuracy, {where}", _percent(exact), _percent(share), f"{100 * (share - exact):+.2f} points"
        for name, of in result.further.items():
            for where, share in (("simulated", of.simulated), ("exported file", of.exported)):
                if share is not None and of.exact is not None:
                    points = f"{100 * (share - of.exact):+.2f} points"
                    yield f"accuracy of {name}, {where}", _percent(of.exact), _percent(share), points
    else:
        for where, share in (("simulated", result.simulated_agreement), ("exported file", result.exported_agreement)):
            if share is not None:
                yield f"top-1 as FP32, {where}", "-", _percent(share), ""
    for name, ratio in list(result.sqnr.items())[:_OUTPUTS_SHOWN]:
        yield f"SQNR of {name}", "-", judged(ratio), ""


def _captions(outcome: Outcome) -> Iterator[str]:
    result, latency = outcome.evaluation, outcome.latency
    if result is not None and result.float_accuracy is not None:
        yield f"accuracy: top-1 of output {result.output!r} over {result.samples} samples"
    elif result is not None and result.simulated_agreement is not None:
        yield f"top-1 as FP32: share of {result.samples} samples where the best class of {result.output!r} is the same"
    if latency is not None:
        yield (
            f"latency: best of {latency.rounds} interleaved rounds, batch {latency.batch}, "
            f"{latency.threads} thread(s), {latency.runtime}"
        )
        if latency.clock == "processor":
            yield (
                "the machine is busy, so these are milliseconds of the processor with one thread, which do not count "
                "what others took"
            )
        if not latency.is_steady:
            yield (
                f"the rounds gave {latency.ratio_low:.2f}x to {latency.ratio_high:.2f}x, as on a busy machine: "
                "measure again, or --threads 1"
            )
    yield from gain_lines(latency, outcome.float_bytes, outcome.quantized_bytes, outcome.tidied_bytes)
    if outcome.checks:
        yield "written file against the simulator"
        yield from (f"  {check}" for check in outcome.checks)
    if outcome.coverage is not None:
        yield f"coverage: {outcome.coverage}"
    yield f"target {outcome.target}, calibration {outcome.calibration}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


def _ratio(after: float, before: float | None) -> str:
    return f"{after / before:.2f}x" if before else ""
