"""`isobit plan`: what quantizing would bring, without data."""

from __future__ import annotations

import json


def test_what_quantizing_would_bring(isobit, digits, tmp_path):
    result = isobit("plan", digits / "model.onnx", "--exclude", "Linear")
    assert result.exit_code == 0, result.output
    for text in (
        "target       onnxruntime-cpu",
        "conversions  1 to integers, 1 to float",
        "MB quantized",
        "in float: 2",
    ):
        assert text in result.stdout
    assert "node_linear (Linear): excluded by you" in result.stdout
    found = json.loads(isobit("plan", digits / "model.onnx", "--json", "--report", tmp_path / "r.html").stdout)
    assert "node_linear" in (tmp_path / "r.html").read_text("utf-8")
    assert found["coverage"]["integer_weight_bytes"] == found["coverage"]["weight_bytes"]
    assert 0.25 < found["bytes_after"] / found["bytes_before"] < 0.28, "biases have 32 bits"
    assert 0.4 < found["time"]["ratio"] < 0.9
    assert len(found["nodes"]) == 48


def test_what_is_wrong_is_said(isobit, digits, tmp_path):
    missing = isobit("plan", tmp_path / "none.onnx")
    assert (missing.exit_code, "no such file" in missing.stderr) == (1, True)
    refused = isobit("plan", digits / "model.onnx", "--target", "onnxruntime-cpu", "--weights", "int3")
    assert (refused.exit_code, "cannot run weights of type int3" in refused.stderr) == (1, True)
