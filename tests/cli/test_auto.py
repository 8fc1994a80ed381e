"""`isobit auto`: what it measures by, what it writes and says."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SCORE = """
import numpy as np

def evaluate(model):
    with np.load({path!r}) as file:
        images, labels = file["image"][:64], file["label"][:64]
    return float(np.mean(model(images)[model.outputs[0]].argmax(1) == labels))
"""


@pytest.fixture
def data(images: np.ndarray, tmp_path: Path) -> Path:
    np.savez(tmp_path / "c.npz", image=images[:8])
    return tmp_path / "c.npz"


def test_a_python_file_a_journal_and_a_folder(
    isobit: Callable[..., Any], digits: Path, data: Path, tmp_path: Path
) -> None:
    score = tmp_path / "score.py"
    score.write_text(SCORE.format(path=str(digits / "test.npz")))
    out, journal = tmp_path / "out", tmp_path / "j.jsonl"
    common = ("auto", digits / "model.onnx", "--data", data, "--evaluate", score, "-o", out, "--journal", journal)
    shown = isobit(*common, "--max-drop", 0.05, "--write-json", tmp_path / "auto.json", "--report", tmp_path / "r.html")
    assert shown.exit_code == 0, shown.output
    assert "fast holds a drop of 0.05: evaluate " in shown.stdout
    assert {path.name for path in out.iterdir()} == {"model.qdq.onnx", "encodings.json", "summary.txt"}
    page = (tmp_path / "r.html").read_text("utf-8")
    assert "What was tried" in page
    assert "What would help" in page
    assert json.loads((tmp_path / "auto.json").read_text())["holds"] is True
    assert [json.loads(line).get("scored") for line in journal.read_text().splitlines()][1:3] == ["float", "fast"]
    other = isobit(*common, "--weights", "int4")
    assert other.exit_code == 1
    assert "is of other settings" in other.stderr
    score.write_text(score.read_text() + "# another")
    assert "is of another evaluate" in isobit(*common).stderr


def test_labels(isobit: Callable[..., Any], digits: Path, data: Path, tmp_path: Path) -> None:
    """The time is over after the first attempt, and the folder can be used."""
    common = ("auto", digits / "model.onnx", "--data", data, "-o", tmp_path / "out", "--max-drop", 0)
    shown = isobit(*common, "--evaluate", digits / "test.npz", "--minutes", 1e-6, "--weights", "int2")
    assert shown.exit_code == 0, shown.output
    assert "the time is over" in shown.stdout
    assert "measured on your evaluate; 0.99" in shown.stdout
    assert (tmp_path / "out" / "model.qdq.onnx").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("def score(model): ...", "has no function evaluate"),
        ("1 / 0", "fails with ZeroDivisionError"),
        ("raise SystemExit(0)", "fails with SystemExit"),
        ("def evaluate(): ...", "takes no model"),
        ("def evaluate(model): return float('nan')", "returned nan for the float model"),
    ],
)
def test_python_that_measures_nothing(
    isobit: Callable[..., Any], digits: Path, data: Path, tmp_path: Path, content, message
) -> None:
    score = tmp_path / "score.py"
    if content is not None:
        score.write_text(content)
    shown = isobit(*("auto", digits / "model.onnx", "--data", data, "--evaluate", score, "-o", tmp_path / "out"))
    assert shown.exit_code == 1
    assert message in shown.stderr
    assert not (tmp_path / "out").exists()


def test_python_finds_what_stands_beside_it(
    isobit: Callable[..., Any], digits: Path, data: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "beside_the_score.py").write_text("def evaluate(): ...")
    (tmp_path / "score.py").write_text("from beside_the_score import evaluate")
    shown = isobit(
        *("auto", digits / "model.onnx", "--data", data, "--evaluate", tmp_path / "score.py", "-o", tmp_path / "out")
    )
    assert "evaluate takes no model" in shown.stderr


def test_data_without_labels(isobit: Callable[..., Any], digits: Path, data: Path, tmp_path: Path) -> None:
    shown = isobit("auto", digits / "model.onnx", "--data", data, "--evaluate", data, "-o", tmp_path / "out")
    assert shown.exit_code == 1
    assert "holds no array 'label' or 'labels'" in shown.stderr


def test_quantize_has_the_score(isobit: Callable[..., Any], digits: Path, data: Path, tmp_path: Path) -> None:
    score = tmp_path / "score.py"
    score.write_text(SCORE.format(path=str(digits / "test.npz")))
    common = ("--data", data, "--recipe", "basic", "--method", "minmax", "--latency-batch", 0, "-o", tmp_path / "out")
    shown = isobit("quantize", digits / "model.onnx", *common, "--evaluate", score, "--json")
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout)["scores"]["simulated"] > 0.9
    score.write_text("def evaluate(model):\n    return {'first': float(len(model.outputs)), 'second': 0.5}")
    shown = isobit("quantize", digits / "model.onnx", *common, "--evaluate", score, "--json")
    figures = {"first": 1.0, "second": 0.5}
    assert json.loads(shown.stdout)["scores"] == {"float": figures, "simulated": figures}
    shown = isobit("quantize", digits / "model.onnx", *common, "--evaluate", score)
    assert "second, simulated" in shown.stdout
    score.write_text("def evaluate(): ...")
    assert "takes no model" in isobit("quantize", digits / "model.onnx", *common, "--evaluate", score).stderr


def test_analyze_has_the_score(isobit: Callable[..., Any], digits: Path, data: Path, tmp_path: Path) -> None:
    common = ("--data", data, "--recipe", "basic", "--method", "minmax", "--analyzed", 4, "--checks", 0, "--json")
    shown = isobit("analyze", digits / "model.onnx", *common, "--evaluate", digits / "test.npz")
    assert json.loads(shown.stdout)["scores"]["float"] > 0.99


def test_quantize_asks_for_a_number_first(isobit: Callable[..., Any], digits: Path, data: Path, tmp_path: Path) -> None:
    score = tmp_path / "score.py"
    score.write_text("def evaluate(model):\n    return {'boxes': 1.0, 'classes': float('nan')}")
    shown = isobit("quantize", digits / "model.onnx", "--data", data, "--evaluate", score, "-o", tmp_path / "out")
    assert shown.exit_code == 1
    assert "evaluate returned nan for 'classes' for the float model" in shown.stderr
    assert not (tmp_path / "out").exists()
