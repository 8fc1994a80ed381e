"""`isobit analyze`: what it prints, as text and as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper, parser, save


def test_what_hurts_and_what_would_help(isobit: Callable[..., Any], digits: Path, images: np.ndarray, tmp_path) -> None:
    np.savez(tmp_path / "c.npz", image=images[:16])
    common = ("analyze", digits / "model.onnx", "--data", tmp_path / "c.npz", "--recipe", "basic", "--method", "minmax")
    shown = isobit(*common, "--weights", "int4", "--analyzed", 8, "--checks", 1)
    assert shown.exit_code == 0, shown.output
    assert "on 8 samples" in shown.stdout
    assert "what would help" in shown.stdout
    assert "(tried: " in shown.stdout
    report = tmp_path / "report.html"
    data = json.loads(
        isobit(
            *common, "--analyzed", 4, "--checks", 0, "--json", "--report", report, "--second", tmp_path / "c.npz"
        ).stdout
    )
    assert data["data"]["drift"]["moved"] == []
    assert report.read_text("utf-8").startswith("<!doctype html>")
    assert data["samples"] == 4
    assert abs(sum(site["share"] for site in data["sites"]) - 1) < 0.05


def test_data_with_nan_that_is_asked_for(
    isobit: Callable[..., Any], digits: Path, images: np.ndarray, tmp_path
) -> None:
    images = images[:8].copy()
    images[3, 0, 0, 0] = np.nan
    np.savez(tmp_path / "c.npz", image=images)
    common = ("--data", tmp_path / "c.npz", "--recipe", "basic", "--method", "minmax", "--ignore-non-finite")
    shown = isobit("analyze", digits / "model.onnx", *common, "--analyzed", 8, "--checks", 0)
    assert shown.exit_code == 0, shown.output
    report = tmp_path / "report.html"
    shown = isobit("quantize", digits / "model.onnx", *common, "-o", tmp_path / "out", "--report", report)
    assert shown.exit_code == 0, shown.output
    assert report.exists()


def test_a_model_without_float_outputs(isobit: Callable[..., Any], digits: Path, images: np.ndarray, tmp_path) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(digits / "model.onnx")
    scores = model.graph.output[0].name
    model.graph.node.append(onnx.helper.make_node("ArgMax", [scores], ["best"], axis=1, keepdims=0))
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info("best", onnx.TensorProto.INT64, ["N"]))
    onnx.save(model, tmp_path / "best.onnx")
    np.savez(tmp_path / "c.npz", image=images[:8])
    common = ("--data", tmp_path / "c.npz", "--recipe", "basic", "--method", "minmax", "--checks", 0)
    result = isobit("analyze", tmp_path / "best.onnx", *common)
    assert (result.exit_code, "no float output with values to compare: best (int64)" in result.output) == (1, True)


def test_a_file_that_is_not_there(isobit: Callable[..., Any]) -> None:
    result = isobit("analyze", "none.onnx", "--data", "none.npz")
    assert (result.exit_code, "none.onnx: no such file" in result.output) == (1, True)


def test_a_report_that_cannot_be_written(isobit: Callable[..., Any], digits: Path, tmp_path: Path) -> None:
    data, report = digits / "calibration.npz", tmp_path / "none" / "report.html"
    (tmp_path / "none").write_text("a file")
    for verb in (("analyze",), ("quantize", "-o", tmp_path / "out")):
        result = isobit(*verb, digits / "model.onnx", "--data", data, "--report", report)
        assert result.exit_code == 1, result.output
        assert not (tmp_path / "out").exists()


def test_labels_of_a_model_with_two_outputs_name_the_output_that_they_score(
    isobit: Callable[..., Any], tmp_path: Path
) -> None:
    """Else the figure would be taken for one of the whole model."""
    body = parser.parse_graph(
        "two (float[n, 4] x) => (float[n, 3] kind, float[n, 2] colour){ kind = MatMul(x, a)\n colour = MatMul(x, b) }"
    )
    rng = np.random.default_rng(0)
    a, b, x = (rng.standard_normal(shape).astype(np.float32) for shape in ((4, 3), (4, 2), (16, 4)))
    body.initializer.extend([numpy_helper.from_array(a, "a"), numpy_helper.from_array(b, "b")])
    save(helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "two.onnx")
    np.savez(tmp_path / "test.npz", x=x, label=(x @ a).argmax(1))
    shown = isobit(
        "analyze", tmp_path / "two.onnx", "--data", tmp_path / "test.npz", "--evaluate", tmp_path / "test.npz",
        "--recipe", "basic", "--json",
    )  # fmt: skip
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout)["scores"]["float"] == {"kind": 1.0}
