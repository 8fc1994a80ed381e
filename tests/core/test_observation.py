"""The pass over the data: interrupted, resumed, from files."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy_backend import NumpyBackend, NumpyModel
from registries import own_registry
from sketch import Sketch

from isobit.canonical import canonicalize
from isobit.errors import DataError
from isobit.plugins import hookimpl
from isobit.quantsim import QuantSim
from isobit.statistics import Statistics

DATA = np.random.default_rng(3).standard_normal((12, 3, 6, 6)).astype(np.float32)
BATCHES = [DATA[i : i + 2] for i in range(0, 12, 2)]


@pytest.fixture(autouse=True)
def _numpy_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    @hookimpl
    def isobit_backends() -> list[NumpyBackend]:
        return [NumpyBackend()]

    point = SimpleNamespace(name="numpy", value="here", dist=None)
    point.load = lambda: SimpleNamespace(isobit_backends=isobit_backends)
    registry = own_registry(point)
    monkeypatch.setattr("isobit.quantsim.quantsim.registry", lambda: registry)


@pytest.fixture(autouse=True)
def _interrupts_are_heard() -> Iterator[None]:
    """Shells start background jobs with Ctrl-C ignored, which Python then leaves so."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def sim(channels: int = 4) -> QuantSim:
    sketch = Sketch(0)
    x = sketch.input("x", "N", 3, 6, 6)
    weight = sketch.random("conv.w", channels, 3, 3, 3)
    y = sketch.node("Conv", x, weight, name="conv", shape=("N", channels, 4, 4), group=1)
    y = sketch.node("Sigmoid", y, name="gate", shape=("N", channels, 4, 4))
    return QuantSim(NumpyModel(canonicalize(sketch.graph(y)), sketch.values))


def calibrated(method: str = "minmax") -> QuantSim:
    simulator = sim()
    simulator.calibrate(BATCHES, method)
    return simulator


def content(sim: QuantSim) -> bytes:
    """The statistics as bytes, without the fingerprint of their model."""
    sim.statistics.model = ""
    return sim.statistics.to_bytes()


def interrupted_at(number: int) -> Iterator[np.ndarray]:
    """The data; Ctrl-C comes while batch `number` is being read."""
    for index, batch in enumerate(BATCHES):
        if index == number:
            os.kill(os.getpid(), signal.SIGINT)
        yield batch


@pytest.mark.parametrize("number", [0, 2, 5])
def test_an_interrupted_pass_goes_on_where_it_stopped(tmp_path: Path, number: int) -> None:
    file, simulator = tmp_path / "so-far.npz", sim()
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match=f"the statistics of {number + 1} batches are in .*so-far.npz"):
        simulator.calibrate(interrupted_at(number), resume=file)
    assert signal.getsignal(signal.SIGINT) is before
    assert Statistics.load(file).batches == number + 1
    assert simulator.calibration is None

    resumed = sim()
    resumed.calibrate(BATCHES, "moving-average", resume=file)
    assert content(resumed) == content(calibrated())
    assert dict(resumed.encodings) == dict(calibrated("moving-average").encodings)
    assert Statistics.load(file).batches == 6


def test_a_pass_that_fails_late_loses_no_more_than_since_the_file_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bad batch, or a process that is killed without notice: the file is written on the way."""
    monkeypatch.setattr("isobit.quantsim.observe.JOURNAL", 2)
    file = tmp_path / "so-far.npz"

    def failing() -> Iterator[np.ndarray]:
        yield from BATCHES[:5]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        sim().calibrate(failing(), resume=file)
    assert Statistics.load(file).batches == 4
    again = sim()
    again.calibrate(BATCHES, "moving-average", resume=file)
    assert content(again) == content(calibrated())
    assert dict(again.encodings) == dict(calibrated("moving-average").encodings)


def test_without_a_file_an_interruption_is_at_once(tmp_path: Path) -> None:
    simulator = sim()
    with pytest.raises(KeyboardInterrupt):
        simulator.calibrate(interrupted_at(1))
    assert len(simulator.statistics) == 0


def test_a_pass_that_is_done_needs_no_more_batches(tmp_path: Path) -> None:
    file = tmp_path / "s.npz"
    sim().calibrate(BATCHES, resume=file)
    simulator = sim()
    simulator.calibrate(BATCHES, "mse", resume=file)
    assert simulator.statistics.batches == 6
    assert dict(simulator.encodings) == dict(calibrated("mse").encodings)


def test_the_file_of_another_model_or_limit_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "s.npz"
    sim().calibrate(BATCHES, resume=file)
    with pytest.raises(DataError, match=r"s\.npz: not of this model and these settings: .* sampling limits"):
        sim().calibrate(BATCHES, resume=file, sample_limit=7)


@pytest.mark.parametrize(
    ("others", "problem"),
    [
        ([batch + 1 for batch in BATCHES], "its 3 batches began with another one"),
        ([DATA[i : i + 3] for i in range(0, 12, 3)], "its 3 batches began with another one"),
        (BATCHES[:2], "it holds 3 batches, and the data has 2"),
    ],
    ids=["other values", "larger batches", "fewer batches"],
)
def test_other_data_does_not_go_on_with_a_file(tmp_path: Path, others: list[np.ndarray], problem: str) -> None:
    file = tmp_path / "s.npz"
    sim().calibrate(BATCHES[:3], resume=file)
    before = file.read_bytes()
    with pytest.raises(DataError, match=rf"s\.npz: {problem}.* remove the file, or give the data"):
        sim().calibrate(others, resume=file)
    assert file.read_bytes() == before
    sim().calibrate(BATCHES, resume=file)  # the same data, and more
    assert Statistics.load(file).batches == 6


def test_statistics_of_parts_add_up_from_files(tmp_path: Path) -> None:
    for name, part in (("a", BATCHES[:2]), ("b", BATCHES[2:])):
        simulator = sim()
        simulator.calibrate(part)
        simulator.save_statistics(tmp_path / f"{name}.npz")
    loaded = sim()
    loaded.load_statistics(tmp_path / "a.npz", tmp_path / "b.npz")
    loaded.recalibrate("moving-average=0.5")
    assert content(loaded) == content(calibrated())
    assert dict(loaded.encodings) == dict(calibrated("moving-average=0.5").encodings)


def test_statistics_that_do_not_fit_are_named(tmp_path: Path) -> None:
    Statistics().save(tmp_path / "empty.npz")
    with pytest.raises(DataError, match=r"empty\.npz: has no statistics of 'x': of another model or plan"):
        sim().load_statistics(tmp_path / "empty.npz")
    simulator = sim()
    simulator.calibrate(BATCHES, sample_limit=5)
    simulator.save_statistics(tmp_path / "five.npz")
    calibrated().save_statistics(tmp_path / "all.npz")
    loaded = sim()
    with pytest.raises(DataError, match=r"five\.npz: does not add to .*all\.npz: .* sampling limits"):
        loaded.load_statistics(tmp_path / "all.npz", tmp_path / "five.npz")
    assert len(loaded.statistics) == 0


def test_what_a_scheme_does_otherwise_is_noted() -> None:
    simulator = sim()
    simulator.calibrate(BATCHES, "entropy")
    assert not any("entropy" in note for note in simulator.report.notes)
    model = simulator.backend_model.inner
    sim_16_bits = QuantSim(model, activations="uint16")
    sim_16_bits.calibrate(BATCHES, "entropy")
    assert any("uint16 is calibrated by mse" in note for note in sim_16_bits.report.notes)
