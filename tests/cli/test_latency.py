from __future__ import annotations

import json
import time

import numpy as np
import pytest

from isobit.cli.quantizing.latency import first_samples, measure, processor_time_tells
from isobit.cli.quantizing.model_files import file_size
from isobit.errors import ModelError


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
    models, batch = (Worker(0.002), Worker(0.001)), BATCH
    assert processor_time_tells(*models)
    latency = measure(*models, batch, 1, "processor")
    assert (latency.ratio, latency.clock) == (pytest.approx(0.5, rel=0.1), "processor")
    models[1].computes_in_caller = False
    assert not processor_time_tells(*models)


class Clocks:
    """The two clocks of a machine on which time goes by only while its models run."""

    def __init__(self, monkeypatch):
        self.wall = self.processor = 0.0
        clocks = {"wall": lambda: self.wall, "processor": lambda: self.processor}
        monkeypatch.setattr("isobit.cli.quantizing.latency._CLOCKS", clocks)

    def model(self, seconds, others=lambda run: 0.0):
        """A model that computes for so many seconds, and in its n-th run waits for others for `others(n)` more."""
        return Paper(self, seconds, others)


class Paper:
    runtime, computes_in_caller = "a runtime", True

    def __init__(self, clocks, seconds, others):
        self.clocks, self.seconds, self.others, self.runs = clocks, seconds, others, 0

    def run(self, batch):
        self.runs += 1
        self.clocks.processor += self.seconds
        self.clocks.wall += self.seconds + self.others(self.runs)
        return {}


BATCH = {"x": np.zeros((4, 1))}


def test_a_network_whose_best_run_was_interrupted_is_not_steady(monkeypatch):
    clocks = Clocks(monkeypatch)
    # Three rounds that are alike to a few per cent, and far from the truth: others always take from the second.
    models = clocks.model(0.65), clocks.model(0.6, lambda run: 0.22)
    wall = measure(*models, BATCH, 2)
    assert (wall.rounds, wall.ratio) == (3, pytest.approx(0.82 / 0.65))
    assert wall.interruption == pytest.approx(0.82 / 0.6)
    assert not wall.is_steady
    found = measure(*models, BATCH, 1, "processor")
    assert found.ratio == pytest.approx(0.6 / 0.65)
    assert found.is_steady


def test_few_rounds_must_be_more_alike(monkeypatch):
    clocks = Clocks(monkeypatch)
    # The runs that others left alone: one of the second model's six, so that the best is known, and the others are not.
    slow = clocks.model(0.6), clocks.model(0.6, lambda run: 0.0 if run in (3, 4) else 0.1)
    latency = measure(*slow, BATCH, 2)
    assert latency.interruption == pytest.approx(1)
    assert latency.ratio_high < 1.25 * latency.ratio_low
    assert not latency.is_steady
    fast = clocks.model(0.006), clocks.model(0.006, lambda run: 0.0 if run % 16 > 8 else 0.001)
    latency = measure(*fast, BATCH, 2)
    assert latency.rounds >= 8
    assert latency.ratio == pytest.approx(1)
    assert latency.is_steady


def test_both_models_have_the_same_number_of_runs(monkeypatch):
    clocks = Clocks(monkeypatch)
    noise = np.random.default_rng(0).exponential(0.001, 100_000)
    fast, slow = clocks.model(0.0005, lambda run: noise[run]), clocks.model(0.004, lambda run: noise[run])
    latency = measure(slow, fast, BATCH, 1)
    assert fast.runs == slow.runs
    assert fast.runs > 5 * latency.rounds  # a turn of the faster one is long enough for threads that spin to end


def test_a_runtime_that_computes_elsewhere_is_not_called_interrupted(monkeypatch):
    clocks = Clocks(monkeypatch)
    model = clocks.model(0.0, lambda run: 0.01)
    model.computes_in_caller = False
    latency = measure(clocks.model(0.01), model, BATCH, 1)
    assert (latency.interruption, latency.is_steady) == (None, True)


def test_a_busy_machine_is_measured_by_the_processor(isobit, digits, tmp_path, monkeypatch):
    monkeypatch.setattr("isobit.cli.quantizing.latency._STEADY", 0.0)  # no two rounds are that alike
    monkeypatch.setattr("isobit.cli.quantizing.latency._STEADY_OF_FEW", 0.0)
    monkeypatch.setattr("isobit.cli.quantizing.latency._SECONDS", 0.1)
    monkeypatch.setattr("isobit.cli.quantizing.latency._MOST_SECONDS", 0.1)
    data = ("--data", digits / "calibration.npz", "--samples", 8, "--method", "minmax", "--recipe", "basic")
    found = isobit("quantize", digits / "model.onnx", *data, "-o", tmp_path / "out", "--threads", 2, "--json")
    latency = json.loads(found.stdout)["latency"]
    assert (latency["clock"], latency["threads"]) == ("processor", 1)
    assert 0 < latency["ratio"] < 1


def test_tidying_and_integers_are_ratios_of_the_same_rounds(monkeypatch):
    clocks = Clocks(monkeypatch)
    given, tidied, quantized = clocks.model(0.04), clocks.model(0.01), clocks.model(0.012)
    latency = measure(given, quantized, BATCH, 1, tidied=tidied)
    assert given.runs == tidied.runs == quantized.runs
    assert (latency.float_ms, latency.quantized_ms) == (pytest.approx(40), pytest.approx(12))
    found = latency.tidied
    assert found.float_ms == pytest.approx(10)
    for ratio, expected in ((found.tidying, 0.25), (found.integers, 1.2)):
        assert (ratio.best, ratio.low, ratio.high) == (pytest.approx(expected),) * 3
    alone = measure(None, quantized, BATCH, 1, tidied=tidied)
    assert (alone.ratio, alone.tidied.tidying) == (None, None)
    assert alone.tidied.integers.best == pytest.approx(1.2)


def test_runs_that_take_long_are_not_done_once_more(monkeypatch):
    clocks = Clocks(monkeypatch)
    tidied = clocks.model(1.0)
    latency = measure(clocks.model(1.0), clocks.model(0.5), BATCH, 1, tidied=tidied)
    assert (latency.tidied, tidied.runs, latency.ratio) == (None, 0, pytest.approx(0.5))


def test_the_example_is_measured_as_isobit_writes_it(isobit, digits, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    data = ("--data", digits / "calibration.npz", "--samples", 8, "--method", "minmax", "--recipe", "basic")
    found = isobit("quantize", digits / "model.onnx", *data, "-o", tmp_path / "out", "--threads", 1, "--json")
    told = json.loads(found.stdout)
    assert told["latency"]["tidied"]["float_ms"] < told["latency"]["float_ms"]  # its biases are no longer computed
    assert 0.6e6 < told["tidied_bytes"] < 0.75e6  # 164,000 weights of four bytes
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("too_large", [True, False])
def test_what_is_not_written_in_float_is_not_measured(isobit, digits, tmp_path, monkeypatch, too_large):
    def refuse(self, model, path):
        raise ModelError("no such operation")

    if too_large:
        monkeypatch.setattr("isobit.cli.quantizing.quantize_run._LARGEST_TIDIED", 1000)
    else:
        monkeypatch.setattr("isobit_onnx.backend.OnnxBackend.write_float", refuse)
    data = ("--data", digits / "calibration.npz", "--samples", 8, "--method", "minmax", "--recipe", "basic")
    found = isobit("quantize", digits / "model.onnx", *data, "-o", tmp_path / "out", "--threads", 1, "--json")
    told = json.loads(found.stdout)
    assert (told["latency"]["tidied"], told["tidied_bytes"]) == (None, None)
    assert told["latency"]["ratio"] > 0
    assert any("no such operation" in note for note in told["notes"]) is not too_large


def test_without_a_float_file_there_is_no_ratio(monkeypatch):
    latency = measure(None, Clocks(monkeypatch).model(0.001), BATCH, 1)
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
