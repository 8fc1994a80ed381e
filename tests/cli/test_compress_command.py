"""`isobit compress`, and the costs that `isobit inspect` shows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isobit.plugins import registry


def test_files_and_figures(
    isobit: Callable[..., Any], digits: Path, images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "c.npz", image=images)
    common = ("compress", digits / "model.onnx", "--data", tmp_path / "c.npz", "--cost", "parameters")
    opened: list[int] = []
    plugins = type(registry())
    open_model = plugins.open
    monkeypatch.setattr(plugins, "open", lambda *given, **named: opened.append(1) or open_model(*given, **named))
    asked = ("--keep", 0.7, "--method", "weight-svd", "--trials", 1, "--report", tmp_path / "r.html")
    shown = isobit(*common, *asked, "-o", tmp_path / "out")
    assert shown.exit_code == 0, shown.output
    assert len(opened) == 1
    assert "weight-svd: 70.0% of the parameters are kept" in shown.stdout
    assert (tmp_path / "out" / "model.onnx").stat().st_size < 0.8 * (digits / "model.onnx").stat().st_size
    report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    assert 0.69 <= report["kept"] <= 0.7
    assert "The least loss at each share" in (tmp_path / "r.html").read_text("utf-8")
    assert set(report["curve"][0]) == {"keep", "loss", "kept_power"}
    again = isobit(*common, "--recipe", tmp_path / "out" / "recipe.toml", "--json", "-o", tmp_path / "again")
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["after"] == report["after"]
    looked = isobit("inspect", tmp_path / "out" / "model.onnx", "--costs", "--json")
    assert json.loads(looked.stdout)["total"] == report["after"]


def test_costs_as_text(isobit: Callable[..., Any], digits: Path) -> None:
    shown = isobit("inspect", digits / "model.onnx", "--costs")
    assert shown.exit_code == 0, shown.output
    assert "macs         3.38 M" in shown.stdout
    assert "more: --all lists them" in shown.stdout


def test_mistakes(isobit: Callable[..., Any], digits: Path, images: np.ndarray, tmp_path: Path) -> None:
    np.savez(tmp_path / "nan.npz", image=np.where(np.arange(32) == 0, np.nan, images[:4]))
    for arguments, words in (
        (("none.onnx",), "none.onnx: no such file"),
        ((digits / "model.onnx", "--method", "svd"), "no method is called 'svd'"),
        ((digits / "model.onnx", "--data", tmp_path / "nan.npz"), "nan.npz: input 'image' in batch 0 holds NaN"),
        ((digits / "model.onnx", "--data", tmp_path / "nan.npz"), "pass --ignore-non-finite"),
        (
            (digits / "model.onnx", "--cost", "milliseconds", "--target", "default"),
            "does not say what a multiply-accumulate takes",
        ),
    ):
        result = isobit("compress", *arguments, "-o", tmp_path / "out")
        assert (result.exit_code, words in result.output) == (1, True), result.output
    assert not (tmp_path / "out").exists()
    assert isobit("compress", digits / "model.onnx", "--ratio", "conv", "-o", tmp_path / "out").exit_code == 2


def test_a_function_judges(isobit: Callable[..., Any], digits: Path, images: np.ndarray, tmp_path: Path) -> None:
    """`--evaluate` means what it means in the other commands: labels, or a function in Python; else it is refused."""
    np.savez(tmp_path / "c.npz", image=images)
    common = ("compress", digits / "model.onnx", "--data", tmp_path / "c.npz", "--method", "weight-svd", "--trials", 1)
    (tmp_path / "score.py").write_text("def evaluate(model): return float(len(model.outputs))\n")
    shown = isobit(*common, "--evaluate", tmp_path / "score.py", "--json", "-o", tmp_path / "out")
    assert shown.exit_code == 0, shown.output
    report = json.loads(shown.stdout)
    assert (report["judged_by"], report["score_before"]) == ("evaluate", 1.0)
    (tmp_path / "score.py").write_text("def evaluate(): return 1\n")
    for path, words in ((tmp_path / "score.py", "takes no model"), (tmp_path / "c.npz", "holds no array 'label'")):
        refused = isobit(*common, "--evaluate", path, "-o", tmp_path / "other")
        assert (refused.exit_code, words in refused.stderr) == (1, True), refused.output
