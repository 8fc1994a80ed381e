"""The written file is run in every session that users may run it in, and the summary says how far each is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import isobit
from isobit.backend.optional import WrittenRun
from isobit.errors import FileWarning, ModelError
from isobit_onnx.backend import OnnxBackend
from isobit_onnx.run.saturation import sums_saturate

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
with np.load(DIGITS / "calibration.npz") as archive:
    IMAGES = archive["image"][:48]
SESSIONS = ["float mode (session.disable_quant_qdq=1)", "default session", "session.x64quantprecision=1"]


@pytest.fixture(autouse=True)
def _sessions_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not with exact sums, as in other tests (`tests/conftest.py`)."""
    plain_session = onnxruntime.capi.onnxruntime_inference_collection.InferenceSession
    monkeypatch.setattr(onnxruntime, "InferenceSession", plain_session)


@pytest.mark.parametrize(
    "settings", [{}, {"target": "onnxruntime-cpu"}, {"weights": "int4", "target": "onnxruntime-cpu"}, {"recipe": "ptq"}]
)
def test_every_session_is_compared(tmp_path: Path, settings: dict[str, Any]) -> None:
    sim = isobit.quantize(DIGITS / "model.onnx", IMAGES, **settings)
    result = sim.export(tmp_path)
    assert [check.session for check in result.checks] == SESSIONS
    text = result["summary"].read_text("utf-8")
    for check in result.checks:
        assert f"  {check}\n" in text
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(str(result["model"]), options)
    batch = IMAGES[:32]
    (logits,) = session.run(None, {session.get_inputs()[0].name: batch})
    assert result.checks[0].equal == np.mean(logits == sim.run(batch)["logits"])
    assert result.checks[0].equal > 0.95
    saturating = "integer sums saturate on this processor, so run it with session.x64quantprecision=1"
    differ = result.checks[1].decibels != result.checks[2].decibels
    assert [check.remark for check in result.checks] == ["", saturating if sums_saturate() and differ else "", ""]
    assert f"logits: {result.sqnr['logits']:.1f} dB" in text


def test_a_session_that_does_not_run_the_file_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_written = OnnxBackend.run_written

    def failing(self: OnnxBackend, path: Path, batch: Any) -> list[WrittenRun]:
        first, default, *others = run_written(self, path, batch)
        return [first, WrittenRun(default.session, {}, "it does not run: no such kernel"), *others]

    monkeypatch.setattr(OnnxBackend, "run_written", failing)
    sim = isobit.quantize(DIGITS / "model.onnx", IMAGES, method="minmax")
    with pytest.warns(FileWarning, match="default session: it does not run: no such kernel"):
        sim.export(tmp_path)


def test_without_a_batch_it_is_not_checked(tmp_path: Path) -> None:
    isobit.quantize(DIGITS / "model.onnx", IMAGES, method="minmax").save(tmp_path / "saved")
    result = isobit.load(tmp_path / "saved", DIGITS / "model.onnx").export(tmp_path / "out")
    assert result.checks == ()
    assert "not checked, because no batch of calibration is at hand" in result["summary"].read_text("utf-8")


def test_without_onnxruntime_it_is_not_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sim = isobit.quantize(DIGITS / "model.onnx", IMAGES, method="minmax")
    monkeypatch.setattr("isobit_onnx.backend.OnnxBackend.run_written", lambda *_: [])
    assert "not checked, because onnxruntime is not installed" in sim.export(tmp_path)["summary"].read_text("utf-8")


def test_a_poor_result_says_what_to_try(tmp_path: Path) -> None:
    sim = isobit.quantize(DIGITS / "model.onnx", IMAGES, weights="int2", activations="uint2", method="minmax")
    result = sim.export(tmp_path)
    assert result.sqnr["logits"] < 20
    for text in (result["summary"].read_text("utf-8"), str(result)):
        assert f"logits: {result.sqnr['logits']:.1f} dB, poor" in text
        assert "that is poor: try recipe='ptq'" in text
    assert f"model      {result['model']}\n" in str(result)


@pytest.mark.parametrize("with_data", [True, False])
def test_a_file_that_does_not_load_is_refused_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_data: bool
) -> None:
    """Whether the check runs it or it is loaded alone: nothing is written, and an earlier export stays."""
    sim = isobit.quantize(DIGITS / "model.onnx", IMAGES, method="minmax")
    sim.export(tmp_path / "earlier")
    before = {path.name: path.read_bytes() for path in (tmp_path / "earlier").iterdir()}
    if not with_data:
        sim.save(tmp_path / "saved")
        sim = isobit.load(tmp_path / "saved", DIGITS / "model.onnx")

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no kernel for Conv conv1")

    monkeypatch.setattr("onnxruntime.InferenceSession", refuse)
    for name in ("earlier", "out"):
        with pytest.raises(ModelError, match=r"no kernel for Conv conv1; nothing was written: .*exclude"):
            sim.export(tmp_path / name)
    assert {path.name: path.read_bytes() for path in (tmp_path / "earlier").iterdir()} == before
    assert not (tmp_path / "out").exists()
