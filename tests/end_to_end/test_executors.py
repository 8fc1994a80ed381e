"""Calibration shared among workers has the bits of one process, also when a worker is killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from isobit.errors import DataError
from isobit.quantsim import QuantSim
from isobit.techniques import AdaRound, CorrectBias, EqualizeCrossLayers, FoldBatchNorms, SmoothQuant, Technique
from isobit.testing.networks import NETWORKS
from isobit_onnx.reference_networks import build_onnx

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
with np.load(DIGITS / "calibration.npz") as archive:
    BATCHES = list(archive["image"].reshape(32, 8, 1, 32, 32))


def pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))


@pytest.fixture(scope="module")
def expected() -> QuantSim:
    sim = QuantSim(DIGITS / "model.onnx")
    sim.calibrate(BATCHES, "moving-average")
    return sim


def assert_same(sim: QuantSim, expected: QuantSim) -> None:
    sim.statistics.model = expected.statistics.model  # which a pass that can go on knows and another does not
    assert sim.statistics.to_bytes() == expected.statistics.to_bytes()
    assert dict(sim.encodings) == dict(expected.encodings)


def killing(executors: list[ProcessPoolExecutor]) -> Iterator[np.ndarray]:
    """The data; one of the first pool's processes is killed when two of the four chunks are under way."""
    for index, batch in enumerate(BATCHES):
        if index == 16:
            processes = executors[0]._processes
            while not processes:
                time.sleep(0.05)
            time.sleep(0.3)
            os.kill(next(iter(processes)), signal.SIGKILL)
        yield batch


def test_a_pool_whose_worker_is_killed_is_replaced(expected: QuantSim) -> None:
    pools: list[ProcessPoolExecutor] = []

    def another() -> ProcessPoolExecutor:
        pools.append(pool())
        return pools[-1]

    sim = QuantSim(DIGITS / "model.onnx")
    sim.calibrate(killing(pools), "moving-average", executor=another)
    assert len(pools) == 2
    assert_same(sim, expected)
    assert not any("workers died" in note for note in sim.report.notes)


def test_without_another_pool_this_process_does_the_rest(expected: QuantSim) -> None:
    sim = QuantSim(DIGITS / "model.onnx")
    with pool() as executor:
        sim.calibrate(killing([executor]), "moving-average", executor=executor)
    assert_same(sim, expected)
    assert any("workers died" in note for note in sim.report.notes)


def test_an_interrupted_pass_of_workers_goes_on(tmp_path: Path, expected: QuantSim) -> None:
    def interrupted() -> Iterator[np.ndarray]:
        for index, batch in enumerate(BATCHES):
            if index == 20:
                os.kill(os.getpid(), signal.SIGINT)
            yield batch

    with ThreadPoolExecutor(1) as executor:
        sim = QuantSim(DIGITS / "model.onnx")
        with pytest.raises(KeyboardInterrupt, match="the statistics of 21 batches"):
            sim.calibrate(interrupted(), executor=executor, resume=tmp_path / "s.npz")
        sim.calibrate(BATCHES, "moving-average", executor=executor, resume=tmp_path / "s.npz")
    assert_same(sim, expected)


@pytest.mark.parametrize(
    "technique",
    [AdaRound(sweeps=2), CorrectBias(), SmoothQuant(), EqualizeCrossLayers()],
    ids=lambda t: type(t).__name__,
)
def test_techniques_observe_on_workers_with_the_same_bits(technique: Technique) -> None:
    network = NETWORKS["conv_net"]()
    sims = [QuantSim(build_onnx(network), weights="int4") for _ in range(2)]
    data = [network.batch(8, number) for number in range(20)]
    with ThreadPoolExecutor(2) as executor:
        for sim, workers in zip(sims, (None, executor), strict=True):
            sim.apply(FoldBatchNorms())
            (report,) = sim.apply(technique, data=data, executor=workers)
            assert report.changed or not isinstance(technique, AdaRound)
            assert not any("in this process" in note for note in sim.report.notes)
    local, remote = (sim.backend_model for sim in sims)
    for name in local.graph.weights:
        np.testing.assert_array_equal(remote.weight(name), local.weight(name), err_msg=name)


def test_an_error_of_isobit_in_a_worker_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object, batch: object, observers: object, given: object = None) -> None:
        raise DataError("this batch is refused")

    monkeypatch.setattr("isobit_onnx.run.observe.ObservingSession.observe", refuse)
    sim = QuantSim(DIGITS / "model.onnx")
    with ThreadPoolExecutor(1) as executor, pytest.raises(DataError, match="this batch is refused"):
        sim.calibrate(BATCHES, executor=executor)
    assert sim.calibration is None


@pytest.mark.filterwarnings("default")  # a cluster has warnings of its own
def test_a_cluster_gives_the_same_bits_though_a_worker_is_killed(expected: QuantSim) -> None:
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
        ) as cluster,
        distributed.Client(cluster) as client,
    ):

        def killing_one() -> Iterator[np.ndarray]:
            for index, batch in enumerate(BATCHES):
                if index == 16:
                    os.kill(next(iter(cluster.workers.values())).pid, signal.SIGKILL)
                yield batch

        sim = QuantSim(DIGITS / "model.onnx")
        sim.calibrate(killing_one(), "moving-average", executor=client.get_executor())
    assert_same(sim, expected)
