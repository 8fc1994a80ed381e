"""Files in the session that a user deploys them in: exact sums where they would saturate, and nothing else changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import isobit
from isobit.errors import ModelError
from isobit_onnx.backend import OnnxBackend
from isobit_onnx.run.saturation import sums_saturate

DIGITS = Path(__file__).parents[2] / "examples" / "digits"


@pytest.fixture(autouse=True)
def _sessions_as_they_come(monkeypatch):
    """Not with exact sums, as in other tests (`tests/conftest.py`)."""
    plain_session = onnxruntime.capi.onnxruntime_inference_collection.InferenceSession
    monkeypatch.setattr(onnxruntime, "InferenceSession", plain_session)


@pytest.fixture(scope="module")
def images():
    with np.load(DIGITS / "calibration.npz") as archive:
        return archive["image"][:32]


@pytest.fixture(scope="module")
def exported(tmp_path_factory, images):
    folder = tmp_path_factory.mktemp("deployed")
    isobit.quantize(DIGITS / "model.onnx", images, method="minmax").export(folder)
    return folder / "model.qdq.onnx"


def plain(path, images, **entries):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    for key, value in entries.items():
        options.add_session_config_entry(f"session.{key}", value)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": images})[0]


def test_sums_saturate_where_exact_ones_are_another_result(exported, images):
    exact = plain(exported, images, x64quantprecision="1")
    default = plain(exported, images)
    assert sums_saturate() == (not np.array_equal(default, exact))


@pytest.mark.parametrize("saturate", [True, False])
def test_the_session_is_the_one_that_is_right_here(exported, images, monkeypatch, saturate):
    monkeypatch.setattr("isobit_onnx.run.deployed.sums_saturate", lambda: saturate)
    deployed = OnnxBackend().deploy(exported, 1)
    entries = {"x64quantprecision": "1"} if saturate else {}
    np.testing.assert_array_equal(deployed.run({"image": images})["logits"], plain(exported, images, **entries))
    assert ("session.x64quantprecision=1" in deployed.runtime) == saturate


def test_files_that_do_not_load_and_batches_that_do_not_fit(exported, tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(ModelError, match="onnxruntime cannot load .*broken.onnx"):
        OnnxBackend().deploy(broken, 1)
    with pytest.raises(ModelError, match="onnxruntime failed on a batch"):
        OnnxBackend().deploy(exported, 1).run({"image": np.zeros((1, 2), np.float32)})
    assert OnnxBackend().files_of(broken) == [broken]
