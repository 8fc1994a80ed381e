from __future__ import annotations

import json

import numpy as np
import pytest


@pytest.fixture
def calibration(tmp_path, images):
    np.savez(tmp_path / "calibration.npz", image=images)
    return tmp_path / "calibration.npz"


def test_recipes_are_explained(isobit):
    everything = isobit("quantize", "--explain")
    assert everything.exit_code == 0, everything.output
    for text in ("basic: ", "ptq: ", "transformer: ", "EqualizeCrossLayers()", "calibrate, by the method"):
        assert text in everything.stdout
    one = isobit("quantize", "--recipe", "basic", "--explain")
    assert "FoldBatchNorms()   always kept" in one.stdout
    assert "CorrectBias" not in one.stdout


def test_a_recipe_is_followed(isobit, digits, calibration, tmp_path):
    recipe = tmp_path / "short.toml"
    recipe.write_text(
        'schema = 1\nname = "short"\njudge_samples = 16\n'
        '[[steps]]\ntechnique = "FoldBatchNorms"\nkeep = true\n[[steps]]\ntechnique = "EqualizeCrossLayers"\n'
    )
    result = isobit(
        *("quantize", digits / "model.onnx", "--data", calibration, "-o", tmp_path / "out", "--json"),
        *("--latency-batch", 0, "--recipe", recipe, "--weights", "int8 per-tensor"),
    )
    assert result.exit_code == 0, result.output
    notes = json.loads(result.stdout)["notes"]
    (step,) = [note for note in notes if note.startswith("EqualizeCrossLayers ") and "SQNR" in note]
    assert step in (tmp_path / "out" / "summary.txt").read_text("utf-8")


def test_what_cannot_be(isobit, digits, calibration, tmp_path):
    job = ("quantize", digits / "model.onnx", "--data", calibration, "-o", tmp_path / "out")
    unknown = isobit(*job, "--recipe", "ptqq")
    assert unknown.exit_code == 1
    assert "did you mean 'ptq'" in unknown.stderr
    both = isobit(*job, "--recipe", "ptq", "--no-fold")
    assert both.exit_code == 1
    assert "--no-fold" in both.stderr
    assert not (tmp_path / "out").exists()
