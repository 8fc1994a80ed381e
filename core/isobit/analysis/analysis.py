"""Analysis: what hurts in a quantized network, as data and in words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from os import PathLike
from typing import Any

from isobit.analysis.findings import LEAST, Advice, DataJudged, Depth, Drift, Drifted, RangeSetter, SiteError
from isobit.analysis.report_sections import sections_of
from isobit.analysis.sensitivity.how_measured import Sensitivity
from isobit.analysis.words import percent, ratio_text
from isobit.files import json_text, plain
from isobit.html_report import Counted, Section, write_page
from isobit.quantsim.checks.quality import judged
from isobit.quantsim.judging.figures import Figures, figures_text

#: Shares from which a part of the error, or saturation, is worth a line.
_MUCH = 0.01

#: Tensors whose ranges have moved that are named.
_DRIFTED = 5

#: Decibels that further data is said to be worth nothing below.
_NOTHING = 0.05


@dataclass(frozen=True)
class Analysis:
    """What hurts in a quantized network, why, and what would repair it.

    `sqnr` is the signal-to-quantization-noise ratio in dB over all outputs, on `samples` samples; `weights_alone` and
    `activations_alone` with quantizers of one kind. `outputs` has each output, and the parts of one that is put
    together as ``output[part]``. `sites` are sorted by what they cost, the worst first.
    `sensitivity` says how each was measured, where that was asked.
    """

    target: str
    calibration: str
    samples: int
    sqnr: float
    outputs: Mapping[str, float]
    weights_alone: float
    activations_alone: float
    by_sample: tuple[float, ...]
    sites: tuple[SiteError, ...]
    advice: tuple[Advice, ...]
    together: float | None
    depth: tuple[Depth, ...]
    data: DataJudged
    scores: Mapping[str, Figures] = field(default_factory=dict)
    coverage: str = ""
    left_in_float: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    sensitivity: Sensitivity | None = None

    def site(self, name: str) -> SiteError | None:
        """What was found of a quantizer, by the name of its tensor or weight."""
        return next((site for site in self.sites if name == site.name or name in map(str, site.sites)), None)

    def to_dict(self) -> dict[str, Any]:
        """All of it, as JSON can hold it: what is not finite, as a ratio without noise, is None."""
        found = {item.name: getattr(self, item.name) for item in fields(self)}
        found["sites"] = [
            {**_record(site, "sites"), "histogram": None if site.histogram is None else _record(site.histogram)}
            for site in self.sites
        ]
        found["advice"] = [_record(advice, "encodings", "bias") for advice in self.advice]
        found["depth"] = [_record(step) for step in self.depth]
        setters = [_record(setter) for setter in self.data.range_setters]
        drift = self.data.drift
        moved = drift and {**_record(drift), "moved": [_record(item) for item in drift.moved]}
        found["data"] = {**_record(self.data), "range_setters": setters, "drift": moved}
        found["sensitivity"] = self.sensitivity and _record(self.sensitivity)
        return {key: plain(value) for key, value in found.items()}

    def to_json(self, path: str | PathLike[str] | None = None) -> str:
        """The same as text; written to `path` where one is given."""
        return json_text(self.to_dict(), path)

    def to_html(self, path: str | PathLike[str]) -> None:
        """Write a report, one HTML file that needs no network."""
        write_page(path, "isobit analysis", self.about, self.sections())

    @property
    def about(self) -> str:
        """The target and how ranges were found, in a line."""
        return f"target {self.target}, calibration {self.calibration.partition(' (')[0]}"

    def sections(self) -> list[Section]:
        """The same as parts of a page, for a report that has more."""
        measured = [] if self.sensitivity is None else [f"Measured: {self.sensitivity}."]
        return sections_of(self.to_dict(), [*_about_data(self), *measured])

    def text(self, most: int = 8) -> str:
        """In words, the worst first."""
        return "\n".join(_lines(self, most)) + "\n"

    def __str__(self) -> str:
        return self.text()


_Finding = SiteError | Advice | Depth | RangeSetter | Counted | DataJudged | Drift | Drifted | Sensitivity


def _record(item: _Finding, *without: str) -> dict[str, Any]:
    """The fields of one finding."""
    return {entry.name: getattr(item, entry.name) for entry in fields(item) if entry.name not in without}


def _lines(analysis: Analysis, most: int) -> Iterator[str]:
    yield f"{judged(analysis.sqnr)} on {analysis.samples} samples (target {analysis.target})"
    alone = (("weights", analysis.weights_alone), ("activations", analysis.activations_alone))
    yield "  " + ", ".join(f"{kind} alone {ratio_text(value)}" for kind, value in alone)
    for name, figures in analysis.scores.items():
        yield f"  {name}: {figures_text(figures) or f'{figures:.6g}'}"
    if len(analysis.outputs) > 1:
        yield "  " + ", ".join(f"{name} {ratio_text(value)}" for name, value in analysis.outputs.items())
    worst = _worst_sample(analysis)
    if worst:
        yield f"  {worst}"
    if analysis.advice:
        yield ""
        yield "what would help"
        for number, advice in enumerate(analysis.advice[:most], 1):
            checked = "" if advice.measured is None else f" (tried: {advice.measured:+.1f} dB)"
            yield f"  {number}. {advice.text}{checked}"
            yield f"     {advice.settings}"
        if analysis.together is not None:
            count = sum(1 for advice in analysis.advice if (advice.measured or 0) >= LEAST)
            yield f"  the first {count} together: {analysis.together:+.1f} dB (tried)"
    else:
        yield "  no single quantizer stands out: wider formats, or nothing, would help"
    costly = [site for site in analysis.sites[:most] if site.share >= _MUCH]
    if costly:
        yield ""
        yield "what the error is made of"
        for site in costly:
            causes = {name: share for name, share in site.causes.items() if share >= site.share / 10}
            why = ", ".join(f"{name} {percent(share)}" for name, share in sorted(causes.items(), key=lambda i: -i[1]))
            off = "" if site.without is None else f"; {ratio_text(site.without)} without it"
            yield f"  {percent(site.share):>6}  {site.name} ({site.format}): {why}{off}"
    saturated = [site for site in analysis.sites if site.outside >= _MUCH]
    for site in saturated[:most]:
        yield f"saturated: {percent(site.outside)} of the values of {site.name} lie outside its grid"
    dead = [site for site in analysis.sites if site.dead]
    for site in dead[:most]:
        yield f"dead: {site.dead} of {site.channels} channels of {site.name} hold one number alone"
    for setter in analysis.data.range_setters[:most]:
        names = ", ".join(setter.tensors[:3]) + (", ..." if len(setter.tensors) > 3 else "")
        yield (
            f"outlier: sample {setter.sample} alone sets the range of {len(setter.tensors)} tensors ({names}), "
            f"up to {setter.times:.3g} times as wide as all others need"
        )
    if analysis.sensitivity is not None:
        yield f"measured: {analysis.sensitivity}"
    yield from _about_data(analysis)
    for note in analysis.notes:
        yield f"note: {note}"


def _about_data(analysis: Analysis) -> Iterator[str]:
    data = analysis.data
    if data.duplicates:
        first, second = data.duplicates[0]
        yield f"data: {len(data.duplicates)} samples are there twice, the first ones are {first} and {second}"
    if data.more is not None:
        count = max(1, data.samples // data.parts)
        gain = "nothing" if data.more < _NOTHING else f"no more than {data.more:.1f} dB"
        yield f"data: {count} more samples would change {gain} ({data.samples} were looked at)"
        name = max(data.unstable, key=lambda tensor: data.unstable[tensor])
        if data.unstable[name] >= 1 and data.more >= _NOTHING:
            cost = f"{data.unstable[name]:.1f} dB more noise where one of {data.parts} parts of the data is left out"
            yield f"data: the range of {name} is not settled: {cost}"
    if data.drift is not None:
        yield from _about_drift(data.drift)


def _about_drift(drift: Drift) -> Iterator[str]:
    if not drift.moved:
        yield f"data: no range has moved in the second data ({drift.samples} samples)"
        return
    costs = f"{drift.loss:.1f} dB at the output" if drift.loss >= _NOTHING else "nothing at the output"
    yield f"data: the second data ({drift.samples} samples) moves {len(drift.moved)} ranges, which costs {costs}"
    for item in drift.moved[:_DRIFTED]:
        then, now = (f"{low:.4g} to {high:.4g}" for low, high in (item.first, item.second))
        cost = f"{item.cost:.1f} dB more noise than with its own range"
        yield f"data: {item.tensor} goes from {now}, from {then} in the first data: {cost}"


def _worst_sample(analysis: Analysis) -> str:
    ratios = analysis.by_sample
    if len(ratios) < 3 or not all(map(math.isfinite, ratios)):
        return ""
    worst = min(range(len(ratios)), key=lambda i: ratios[i])
    middle = sorted(ratios)[len(ratios) // 2]
    return f"worst sample {worst}: {ratios[worst]:.1f} dB, the middle one {middle:.1f} dB"
