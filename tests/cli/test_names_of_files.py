"""A path that no file can have is the user's error, in every command and option that takes one."""

from __future__ import annotations

import pytest

LONG, THROUGH_A_FILE = "x" * 300, "model.onnx/in"


def arguments(bad, digits):
    """Each command with one bad path."""
    model, data, out = digits / "model.onnx", digits / "calibration.npz", "out"
    few = ("--samples", 8, "--method", "minmax", "--recipe", "basic", "--latency-batch", 0)
    return [
        ("inspect", bad),
        ("plan", bad),
        ("targets", f"{bad}.toml"),
        ("diff", bad, bad),
        ("convert", bad, "x.json", "--format", "aimet-1.0.0"),
        ("transfer", bad, "--source", model, "--target", model, "-o", out),
        ("analyze", bad, "--data", data),
        ("auto", bad, "--data", data, "--evaluate", data, "--max-drop", 0.01, "-o", out),
        ("compress", bad, "--data", data, "-o", out),
        ("dump", bad, "--data", data, "-o", out),
        ("dump", model, "--data", bad, "-o", out),
        ("calibrate", model, "--data", data, "--resume", bad),
        ("calibrate", model, "--data", data, "--write-statistics", bad),
        ("calibrate", model, "--statistics", bad, "-o", out),
        ("quantize", bad, "--data", data, "-o", out),
        ("quantize", model, "--data", bad, "-o", out),
        ("quantize", model, "--data", data, "--evaluate", bad, "-o", out),
        ("quantize", model, "--data", data, "--evaluate", f"{bad}.py", "-o", out),
        ("quantize", model, "--data", data, "--recipe", f"{bad}.toml", "-o", out),
        ("quantize", model, "--data", data, "--target", f"{bad}.toml", "-o", out),
        ("quantize", model, "--data", data, "-o", bad, *few),
        ("new-plugin", "acme", "--out", bad),
    ]


@pytest.mark.parametrize("bad", [LONG, THROUGH_A_FILE])
def test_a_path_that_nothing_can_have(isobit, digits, tmp_path, monkeypatch, bad):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"a file")
    for words in arguments(bad, digits)[:: 1 if bad == LONG else 5]:  # some of them are enough
        result = isobit(*words)
        assert result.exit_code in (1, 2), (words[0], result.stderr)
        assert result.stderr.startswith("error: "), (words[0], result.stderr)
        assert "Errno" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
