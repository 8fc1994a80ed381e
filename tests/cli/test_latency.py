from __future__ import annotations

import json
import time

import numpy as np
import pytest

from isobit.cli.quantizing.latency import first_samples, measure, processor_time_tells
from isobit.cli.quantizing.model_files import file_size


class Sleeper:
    """A model that takes its time, and now and then much more, as on a busy machine."""

    runtime, computes_in_caller = "a runtime", True

    def __init__(self, seconds):
        self.seconds, self.runs = seconds, 0

    def run(self, batch):
        self.runs += 1
        time.sleep(self.seconds * (10 if self.runs % 3 == 0 else 1))
        return {}


def test_the_ratio_is_that_of_the_best_times(monkeypatch):
    monkeypatch.setattr("isobit.cli.quantizing.latency._SECONDS", 0.1)
    monkeypatch.setattr("isobit.cli.quantizing.latency._TURN_SECONDS", 0.0)
    latency = measure(Sleeper(0.002), Sleeper(0.004), {"x": np.zeros((4, 1))}, 2)
    assert latency.ratio == latency.quantized_ms / latency.float_ms == pytest.approx(2, rel=0.2)
    assert latency.ratio_low <= latency.ratio_high
    assert (latency.batch, latency.threads, latency.runtime) == (4, 2, "a runtime")


class Worker:
    """A model that computes for as long as it is given, and then lets others have the processor, more and more."""

    runtime, computes_in_caller = "a runtime", True

    def __init__(self, seconds):
        self.seconds, self.runs = seconds, 0

    def run(self, batch):
        self.runs += 1
        end = time.thread_time() + self.seconds
        while time.thread_time() < end:
            pass
        time.sleep(0.001 * (self.runs % 7))
        return {}


def test_what_others_took_of_the_processor_does_not_count(monkeypatch):
    monkeypatch.setattr("isobit.cli.quantizing.latency._SECONDS", 0.1)
    monkeypatch.setattr("isobit.cli.quantizing.latency._TURN_SECONDS", 0.0)
    models, batch = (Worker(0.002), Worker(0.001)), {"x": np.zeros((4, 1))}
    assert processor_time_tells(*models)
    latency = measure(*models, batch, 1, "processor")
    assert (latency.ratio, latency.clock) == (pytest.approx(0.5, rel=0.1), "processor")
    models[1].computes_in_caller = False
    assert not processor_time_tells(*models)


def test_a_busy_machine_is_measured_by_the_processor(isobit, digits, tmp_path, monkeypatch):
    monkeypatch.setattr("isobit.cli.quantizing.latency._STEADY", 0.0)  # no two rounds are that alike
    monkeypatch.setattr("isobit.cli.quantizing.latency._SECONDS", 0.1)
    monkeypatch.setattr("isobit.cli.quantizing.latency._MOST_SECONDS", 0.1)
    data = ("--data", digits / "calibration.npz", "--samples", 8, "--method", "minmax", "--recipe", "basic")
    found = isobit("quantize", digits / "model.onnx", *data, "-o", tmp_path / "out", "--threads", 2, "--json")
    latency = json.loads(found.stdout)["latency"]
    assert (latency["clock"], latency["threads"]) == ("processor", 1)
    assert 0 < latency["ratio"] < 1


def test_without_a_float_file_there_is_no_ratio(monkeypatch):
    monkeypatch.setattr("isobit.cli.quantizing.latency._SECONDS", 0.0)
    latency = measure(None, Sleeper(0.001), {"x": np.zeros((4, 1))}, 1)
    assert (latency.float_ms, latency.ratio, latency.is_steady) == (None, None, True)


def test_first_samples_keep_a_fixed_batch():
    batch = {"x": np.zeros((4, 2))}
    assert first_samples(batch, 1, None)["x"].shape == (1, 2)
    assert first_samples(batch, 1, 4)["x"].shape == (4, 2)


def test_size_counts_external_weights(tmp_path):
    onnx = pytest.importorskip("onnx")
    weight = onnx.numpy_helper.from_array(np.zeros((64, 64), np.float32), "w")
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    ports = [onnx.helper.make_tensor_value_info(name, 1, ["n", 64]) for name in "xy"]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", ports[:1], ports[1:], [weight]))
    path = tmp_path / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, location="m.data", size_threshold=0)
    assert file_size(path) == path.stat().st_size + (tmp_path / "m.data").stat().st_size
    assert file_size(tmp_path) is None
