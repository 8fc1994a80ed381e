from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import isobit as library
from isobit.encodings import Encoding, Encodings, QuantSpec
from isobit.formats.isobit_json import IsobitJson
from isobit.graph import Input, Tensor, Weight


def test_model(isobit, digits):
    result = isobit("inspect", digits / "model.onnx")
    assert result.exit_code == 0, result.output
    for text in ("image", "(batch, 1, 32, 32)", "logits", "25 BatchNormalization", "float32", "parameters"):
        assert text in result.stdout
    assert "target onnxruntime-cpu would quantize (25 batch norms and constants folded first)" in result.stdout
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


@pytest.fixture(scope="module")
def sim():
    """A calibrated digits network."""
    folder = Path(__file__).parents[2] / "examples" / "digits"
    with np.load(folder / "calibration.npz") as archive:
        return library.quantize(folder / "model.onnx", archive["image"][:16], method="minmax", exclude=["Add"])


def test_a_saved_simulator(isobit, sim, tmp_path):
    path = tmp_path / "digits.isobit"
    sim.save(path)
    shown = isobit("inspect", path).stdout
    assert f"a saved simulator of {len(sim.encodings)} encodings, without its model" in shown
    for text in ("target", "onnxruntime-cpu", "left in float", "Add", "tensors over 1 batches", "classifier.weight"):
        assert text in isobit("inspect", path, "--all").stdout
    data = json.loads(isobit("inspect", path, "--json").stdout)
    assert (data["target"], data["exclude"], len(data["encodings"])) == ("onnxruntime-cpu", ["Add"], len(sim.encodings))


def test_a_quantized_model(isobit, sim, tmp_path):
    path = sim.export(tmp_path)["model"]
    result = isobit("inspect", path)
    assert result.exit_code == 0, result.output
    assert "encodings in format onnx-qdq" in result.stdout
    data = json.loads(isobit("inspect", path, "--json").stdout)
    by_name = {row["name"]: row for row in data["encodings"]}
    assert by_name["image"]["scale"] == sim.encodings["image"].scale.item()


def test_statistics(isobit, sim, tmp_path):
    path = tmp_path / "s.npz"
    sim.save_statistics(path)
    assert f"{len(sim.statistics)} tensors over 1 batches" in isobit("inspect", path).stdout
    (part,) = json.loads(isobit("inspect", path, "--json").stdout)["parts"]
    image = next(row for row in part["tensors"] if row["name"] == "image")
    assert (image["kind"], image["minimum"], image["maximum"], image["values"]) == ("histogram", 0, 1, 16 * 32 * 32)
    data = tmp_path / "data.npz"
    np.savez(data, image=np.zeros(3))
    result = isobit("inspect", data)
    assert result.exit_code == 1
    assert "not a statistics file" in result.stderr


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


def test_a_file_of_no_known_kind(isobit, tmp_path):
    """All that can be inspected is named, not models alone; what makes a model of a file is still said."""
    (tmp_path / "README.md").write_text("text", "utf-8")
    (tmp_path / "model.pt").write_bytes(b"content")
    result = isobit("inspect", tmp_path / "README.md")
    assert result.exit_code == 1
    for text in (".onnx", ".json", ".npz", "saved simulator"):
        assert text in result.stderr
    assert "torch.load" in isobit("inspect", tmp_path / "model.pt").stderr
