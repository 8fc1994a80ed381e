"""An analysis as the sections of a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log10
from typing import Any

from isobit.analysis.findings import LEAST
from isobit.html_report import Curve, Section, cards, curve, notes
from isobit.quantsim.judging.figures import by_name
from isobit.quantsim.shown.simulator_sections import in_float

#: Suggestions, and quantizers whose shares are drawn.
_ADVICE, _DRAWN = 12, 20


def sections_of(data: Mapping[str, Any], about_data: Sequence[str]) -> list[Section]:
    """The sections; `data` is what `Analysis.to_dict` gives, `about_data` what is said of the user's data."""
    figures = {
        "signal to noise": _decibels(data["sqnr"]),
        "weights alone": _decibels(data["weights_alone"]),
        "activations alone": _decibels(data["activations_alone"]),
        "samples": str(data["samples"]),
        "quantizers": str(len(data["sites"])),
    }
    scores = {
        f"score, {', '.join(filter(None, (part, name)))}": _number(value)
        for name, figures in data["scores"].items()
        for part, value in by_name(figures).items()
    }
    sites = data["sites"]
    return [
        cards({**figures, **scores}),
        Section("advice", "What would help", _advice(data)),
        Section("shares", "What the error is made of", {"sites": _shares(sites)}),
        Section("sites", "Quantizers", {"sites": sites}),
        *_measured(data),
        Section("depth", "Error by depth", {"steps": data["depth"], "sqnr": data["sqnr"]}),
        in_float(data["left_in_float"]),
        notes("The data, and notes", list(_notes(data, about_data)), half=True),
    ]


def _measured(data: Mapping[str, Any]) -> list[Section]:
    """Each quantizer as it was measured against its estimated share, where all were measured."""
    about = data["sensitivity"]
    if about is None:
        return []
    is_off = about["measure"] == "off"
    points = []
    for site in data["sites"]:
        value = site["without"] if is_off else site["alone"]
        if value is not None and site["share"] > 0:
            share = 10 * log10(site["share"])
            points.append((share, value, f"{site['name']}: {value:.1f} dB, {100 * site['share']:.2g} % of the error"))
    text = f"Signal to noise of the outputs with each quantizer {about['measure']} alone, by its estimated share."
    return [curve("Measured", text, "share of the error, dB", "dB", [Curve("quantizers", points)])]


def _advice(data: Mapping[str, Any]) -> dict[str, Any]:
    items = [
        {
            "text": advice["text"],
            "settings": advice["settings"],
            "tried": None if advice["measured"] is None else _signed(advice["measured"]),
            "good": (advice["measured"] or 0) >= LEAST,
        }
        for advice in data["advice"][:_ADVICE]
    ]
    together = data["together"]
    return {
        "items": items,
        "none": "No single quantizer stands out: wider formats, or nothing, would help.",
        "together": "" if together is None else f"Those that helped, together: {_signed(together)} (tried)",
    }


def _shares(sites: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{key: site[key] for key in ("name", "share", "causes")} for site in sites[:_DRAWN]]


def _notes(data: Mapping[str, Any], about_data: Sequence[str]) -> list[str]:
    lines = [f"Coverage: {data['coverage']}."]
    if compared := data["calibration"].partition(" (")[2][:-1]:
        lines.append(f"Calibration: {compared}.")
    for setter in data["data"]["range_setters"][:_ADVICE]:
        names = ", ".join(setter["tensors"][:4]) + (", ..." if len(setter["tensors"]) > 4 else "")
        lines.append(
            f"Sample {setter['sample']} alone sets the range of {len(setter['tensors'])} tensors, up to "
            f"{setter['times']:.3g} times as wide as all others need: {names}"
        )
    lines += [line.removeprefix("data: ") for line in about_data]
    ratios = [(ratio, index) for index, ratio in enumerate(data["by_sample"]) if ratio is not None]
    if ratios:
        worst, best = min(ratios), max(ratios)
        lines.append(f"By sample: {worst[0]:.1f} to {best[0]:.1f} dB (sample {worst[1]} is the worst).")
    return [*lines, *data["notes"]]


def _decibels(value: float | None) -> str:
    return "no error" if value is None else f"{value:.1f} dB"


def _signed(value: float) -> str:
    return f"{value:+.1f} dB" if abs(value) >= 0.05 else "+0.0 dB"


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.6g}"
