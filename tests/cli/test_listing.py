from __future__ import annotations

import json
from importlib.metadata import version

from isobit.cli.backends import runtime_warnings
from isobit.plugins import registry


def test_backends(isobit):
    result = isobit("backends")
    assert result.exit_code == 0, result.output
    assert "onnx" in result.stdout
    assert "ready" in result.stdout
    data = json.loads(isobit("backends", "--json").stdout)
    row = next(row for row in data["backends"] if row["name"] == "onnx")
    assert (row["distribution"], row["framework"], row["state"], row["repair"]) == ("isobit", "onnx", "ready", None)
    assert row["version"] == version("isobit")
    assert row["framework version"] == version("onnx")
    assert row["device"] in ("CPU", "CUDA", "CPU (CUDA build, no driver)")


def test_doctor(isobit):
    result = isobit("doctor")
    assert result.exit_code == 0, result.output
    assert "this installation is sound" in result.stdout
    data = json.loads(isobit("doctor", "--json").stdout)
    assert data["sound"] is True
    assert data["facts"]["NumPy"] == version("numpy")


def test_warnings_about_the_runtime():
    assert runtime_warnings("1.2", None) == []
    assert runtime_warnings(None, "1.2") == []
    assert "overwrite each other" in runtime_warnings("1.2", "1.2")[0]
    assert 'pip install "isobit[onnx-cpu]"' in runtime_warnings(None, None)[0]


def test_targets(isobit):
    result = isobit("targets")
    assert result.exit_code == 0, result.output
    assert "onnxruntime-cpu" in result.stdout
    assert "uint8 x int8" in result.stdout
    names = [row["name"] for row in json.loads(isobit("targets", "--json").stdout)]
    assert names == sorted(names)
    assert "default" in names


def test_one_target(isobit):
    result = isobit("targets", "onnxruntime-cpu")
    assert "uint8, int8, uint16, int16" in result.stdout
    assert "Sigmoid [0, 1]" in result.stdout
    data = json.loads(isobit("targets", "default", "--json").stdout)
    assert data["weights"]["granularities"] == ["per-channel", "per-tensor", "block", "lpbq"]
    assert data["bias"] == "int32"


def test_target_file(isobit, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("schema = 2\n", "utf-8")
    result = isobit("targets", path)
    assert result.exit_code == 1
    assert f"{path}: schema: must be 1" in result.stderr


def test_broken_target_is_a_row(isobit, tmp_path, monkeypatch):
    (tmp_path / "broken.toml").write_text("schema = 2\n", "utf-8")
    real = registry().targets()
    monkeypatch.setattr(registry(), "targets", lambda: {**real, "broken": tmp_path / "broken.toml"})
    result = isobit("targets")
    assert result.exit_code == 0
    assert "not valid" in result.stdout
    assert "default" in result.stdout
