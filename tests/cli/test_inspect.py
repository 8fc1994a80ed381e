from __future__ import annotations

import json

import numpy as np
import pytest

from isobit.encodings import Encoding, Encodings, QuantSpec
from isobit.formats.isobit_json import IsobitJson
from isobit.graph import Input, Tensor, Weight


def test_model(isobit, digits):
    result = isobit("inspect", digits / "model.onnx")
    assert result.exit_code == 0, result.output
    for text in ("image", "(batch, 1, 32, 32)", "logits", "25 BatchNormalization", "float32", "parameters"):
        assert text in result.stdout
    assert "target default would quantize (25 batch norms and constants folded first)" in result.stdout
    assert "int8 symmetric per-channel" in result.stdout


def test_model_as_json(isobit, digits):
    data = json.loads(isobit("inspect", digits / "model.onnx", "--json", "--target", "onnxruntime-cpu").stdout)
    assert data["inputs"] == [{"name": "image", "shape": ["batch", 1, 32, 32], "dtype": "float32"}]
    assert data["outputs"] == [{"name": "logits", "shape": ["batch", 10], "dtype": "float32"}]
    assert data["operations"]["Conv"] == 25
    assert data["folded"] == 25
    assert data["plan"]["target"] == "onnxruntime-cpu"
    assert data["plan"]["counts"]["weight"] == 26
    assert {"name": "classifier.weight", "kind": "weight", "format": "int8 symmetric per-channel"} in data["plan"][
        "quantized"
    ]


def test_model_without_folding(isobit, digits):
    data = json.loads(isobit("inspect", digits / "model.onnx", "--json", "--no-fold").stdout)
    assert data["folded"] == 0


@pytest.fixture
def encodings_file(tmp_path):
    per_tensor = Encoding(QuantSpec.parse("uint8"), np.float32(0.5), np.int32(3))
    channels = Encoding(QuantSpec.parse("int8 per-channel"), np.float32([0.25, 0.5]), np.int32([0, 0]), 0)
    path = tmp_path / "encodings.json"
    many = {Tensor(f"t{i}"): per_tensor for i in range(30)}
    IsobitJson().write(Encodings({Weight("conv.weight"): channels, Input("add", 1): per_tensor, **many}), path)
    return path


def test_encodings(isobit, encodings_file):
    result = isobit("inspect", encodings_file)
    assert result.exit_code == 0, result.output
    assert "32 encodings" in result.stdout
    assert "int8 per-channel" in result.stdout
    assert "0.25..0.5" in result.stdout
    assert "add[1]" in result.stdout
    assert "[-1.5, 126]" in result.stdout
    assert "... and 12 more: --all lists them" in result.stdout
    assert "t29" in isobit("inspect", encodings_file, "--all").stdout


def test_encodings_as_json(isobit, encodings_file):
    data = json.loads(isobit("inspect", encodings_file, "--json").stdout)
    first = data["encodings"][0]
    assert first["kind"] == "weight"
    assert first["scale"] == [0.25, 0.5]
    assert (first["minimum"], first["maximum"]) == (-64.0, 63.5)


def test_errors(isobit, tmp_path):
    (tmp_path / "other.json").write_text('{"a": 1}', "utf-8")
    (tmp_path / "text.onnx").write_text("hello", "utf-8")
    for name, message in (
        ("none.onnx", "none.onnx: no such file"),
        ("other.json", "other.json: no encodings file that is known"),
        ("text.onnx", "text.onnx' is not an ONNX model"),
    ):
        result = isobit("inspect", tmp_path / name)
        assert result.exit_code == 1
        assert result.stderr.startswith("error: ")
        assert message in result.stderr
