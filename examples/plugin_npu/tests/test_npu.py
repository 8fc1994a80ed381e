"""The vendor's plug-in as its users meet it: by name, through isobit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import isobit
from isobit.cli.application import app
from isobit.errors import EncodingError, FormatError
from isobit.graph import Tensor
from isobit.plugins import registry
from isobit.quantsim import read_encodings
from isobit_npu.clip_weights import ClipWeights

DIGITS = Path(__file__).parents[2] / "digits"


@pytest.fixture(scope="module")
def images():
    with np.load(DIGITS / "calibration.npz") as file:
        return file["image"][:32]


@pytest.fixture(scope="module")
def sim(images):
    techniques = (isobit.techniques.FoldBatchNorms(), ClipWeights(3.0))
    return isobit.quantize(DIGITS / "model.onnx", images, target="npu", method="power-of-two", techniques=techniques)


def test_the_plug_in_is_listed():
    assert registry().records["npu"].error is None
    assert registry().techniques()["ClipWeights"] is ClipWeights


def test_target_and_scheme(sim, images):
    """Activations are int8, and their scales are powers of two that hold what min-max holds."""
    assert sim.target.name == "npu"
    activations = sim.encodings.of_kind(Tensor)
    assert len(activations) > 3
    plain = isobit.QuantSim(DIGITS / "model.onnx", target="npu")
    plain.calibrate(images)
    for site, encoding in activations.items():
        assert encoding.spec.bits == 8
        assert float(np.log2(encoding.scale)).is_integer(), site
    image = Tensor("image")
    assert 1 <= activations[image].scale / plain.encodings[image].scale < 2.001
    with pytest.raises(FormatError, match="for symmetric grids"):
        isobit.quantize(DIGITS / "model.onnx", images, method="power-of-two")


def test_technique(sim):
    """Weights are those of the folded model, cut off at three standard deviations."""
    folded = isobit.QuantSim(DIGITS / "model.onnx", target="npu")
    folded.apply(isobit.techniques.FoldBatchNorms())
    changed = next(report for report in sim.report.techniques if report.technique == "ClipWeights").changed
    assert len(changed) > 3
    for name in changed:
        folded_weight = folded.backend_model.weight(name)
        expected = np.minimum(
            np.maximum(folded_weight, -3 * float(folded_weight.std())), 3 * float(folded_weight.std())
        )
        np.testing.assert_array_equal(sim.backend_model.weight(name), expected.astype(np.float32), err_msg=name)


def test_format(sim, tmp_path):
    """A table holds every bit of every encoding, and is recognised by its first line."""
    path = tmp_path / "npu.csv"
    table = registry().formats()["npu-csv"]
    assert table.write(sim.encodings, path) == []
    assert dict(table.read(path)) == dict(sim.encodings)
    other = isobit.QuantSim(DIGITS / "model.onnx", target="npu")
    other.apply(isobit.techniques.FoldBatchNorms())
    assert not other.load_encodings(path).missing
    assert dict(other.encodings) == dict(sim.encodings) == dict(read_encodings(path))
    assert f"{len(sim.encodings)} encodings" in CliRunner().invoke(app, ["inspect", str(path)]).stdout
    path.write_text(path.read_text().replace("weight,", "wait,", 1))
    with pytest.raises(EncodingError, match=r"npu\.csv: line \d+: not a row of an NPU table"):
        table.read(path)
