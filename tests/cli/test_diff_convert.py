"""`isobit diff` and `isobit convert`: what they print, what they write, and how they end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import isobit as library
from isobit.encodings import Encoding, Encodings
from isobit.graph import Input, Site, Tensor, Weight
from isobit.quantsim import read_encodings, write_encodings

WEIGHT = Encoding.of("int8 per-channel", [0.5, 0.25], axis=0)


def written(path: Path, **changes: Encoding | None) -> Path:
    items: dict[Site, Encoding | None] = {
        Tensor("x"): Encoding.of("uint8", 0.5, 128),
        Weight("w"): WEIGHT,
        Input("add", 1): Encoding.of("int16", 0.125),
        **{Weight(name) if name == "w" else Tensor(name): encoding for name, encoding in changes.items()},
    }
    write_encodings(Encodings({site: e for site, e in items.items() if e is not None}), path, "isobit")
    return path


@pytest.fixture(scope="module")
def sim() -> library.QuantSim:
    """A calibrated digits network."""
    folder = Path(__file__).parents[2] / "examples" / "digits"
    with np.load(folder / "calibration.npz") as archive:
        return library.quantize(str(folder / "model.onnx"), archive["image"][:16], progress=False)


def test_files_that_are_the_same(isobit: Callable[..., Any], tmp_path: Path) -> None:
    a = written(tmp_path / "a.json")
    b = written(tmp_path / "b.json", x=Encoding.of("int8", 0.5))  # the same levels under another type
    result = isobit("diff", a, b)
    assert (result.exit_code, result.output) == (0, "the same: 3 encodings\n")


def test_what_differs_and_by_how_many_steps(isobit: Callable[..., Any], tmp_path: Path) -> None:
    a = written(tmp_path / "a.json")
    other = Encoding.of("int8 per-channel", [0.5, 0.375], axis=0)
    b = written(tmp_path / "b.json", w=other, x=Encoding.of("uint8", 0.5, 125), y=Encoding.of("uint8", 1.0))
    result = isobit("diff", a, b, "--json")
    assert result.exit_code == 1
    answer = json.loads(result.stdout)
    assert answer["counts"] == {"a": 3, "b": 4, "different": 3}
    by_name = {d["name"]: d for d in answer["differences"]}
    assert (by_name["x"]["what"], by_name["x"]["steps"], by_name["x"]["zero_points"]) == ("grid", 3.0, 3)
    # the integer -128 is -32 on the one grid and -48 on the other: 64 steps of a quarter
    assert (by_name["w"]["steps"], by_name["w"]["channels"]) == (64.0, 1)
    assert by_name["y"]["what"] == "only in B"
    shown = isobit("diff", a, b).output
    assert "3 differences (A has 3 encodings, B 4)" in shown
    assert "only in B" in shown


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"w": Encoding.of("int4 per-channel", [0.5, 0.25], axis=0)}, "format"),
        ({"w": Encoding.of("int8 per-channel", [0.5, 0.25], axis=1)}, "axis"),
        ({"w": Encoding.of("int8 per-channel", [0.5], axis=0)}, "shape"),
        ({"x": None}, "only in A"),
    ],
)
def test_other_differences(isobit: Callable[..., Any], tmp_path: Path, change: dict[str, Any], what: str) -> None:
    a, b = written(tmp_path / "a.json"), written(tmp_path / "b.json", **change)
    result = isobit("diff", a, b, "--json")
    assert result.exit_code == 1
    assert [d["what"] for d in json.loads(result.stdout)["differences"]] == [what]


def test_an_error_is_not_an_answer(isobit: Callable[..., Any], tmp_path: Path) -> None:
    a = written(tmp_path / "a.json")
    (tmp_path / "torn.json").write_text(a.read_text()[:100])
    for other, said in (("torn.json", "not valid JSON"), ("none.json", "no such file")):
        result = isobit("diff", a, tmp_path / other)
        assert result.exit_code == 2
        assert said in result.stderr
    assert isobit("convert", a, tmp_path / "x", "--format", "isobt").exit_code == 1


def test_saved_simulators_and_qdq_models(isobit: Callable[..., Any], sim: library.QuantSim, tmp_path: Path) -> None:
    paths = sim.export(tmp_path / "out")
    sim.save(tmp_path / "a.sim")
    sim.save(tmp_path / "b.sim")
    assert isobit("diff", tmp_path / "a.sim", tmp_path / "b.sim").exit_code == 0
    assert isobit("diff", paths["model"], paths["model"]).exit_code == 0
    model = Path(__file__).parents[2] / "examples" / "digits" / "model.onnx"
    result = isobit("diff", paths["encodings"], paths["model"], "--model", model)
    assert result.exit_code == 0, result.output


def test_converting_there_and_back(isobit: Callable[..., Any], sim: library.QuantSim, tmp_path: Path) -> None:
    model = Path(__file__).parents[2] / "examples" / "digits" / "model.onnx"
    write_encodings(sim.encodings, tmp_path / "a.json", "isobit")
    for form in ("aimet-1.0.0", "onnx-qdq"):  # the others: tests/core/test_aimet_formats.py
        there = tmp_path / ("q.onnx" if form == "onnx-qdq" else f"{form}.encodings")
        result = isobit("convert", tmp_path / "a.json", there, "--format", form, "--model", model)
        assert result.exit_code == 0, result.output
        assert f"{len(sim.encodings)} encodings in format {form}" in result.output
        result = isobit("convert", there, tmp_path / "back.json", "--format", "isobit", "--model", model)
        assert result.exit_code == 0, result.output
        read = read_encodings(tmp_path / "back.json")
        written = {s: e for s, e in sim.encodings.items() if e.spec.type_name != "int32" or form == "onnx-qdq"}
        assert dict(read) == written


def test_what_a_format_cannot_hold_is_said(isobit: Callable[..., Any], tmp_path: Path) -> None:
    a = written(tmp_path / "a.json")
    result = isobit("convert", a, tmp_path / "m.encodings", "--format", "aimet-1.0.0")
    assert result.exit_code == 1
    assert "does not know single readers such as 'add[1]': the model is needed" in result.stderr
    write_encodings(Encodings({Tensor("x"): Encoding.of("int8 strict", 0.5)}), a, "isobit")
    result = isobit("convert", a, tmp_path / "m.encodings", "--format", "aimet-1.0.0")
    assert result.exit_code == 0
    assert "warning: aimet-1.0.0 has no strict grids" in result.stderr
    assert "1 encodings" in isobit("inspect", tmp_path / "m.encodings").output
