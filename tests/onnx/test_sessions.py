"""Sessions are made once and kept while they fit."""

from __future__ import annotations

import numpy as np
import pytest

import isobit
from isobit.techniques import FoldBatchNorms
from isobit.testing.networks import NETWORKS
from isobit_onnx import model as onnx_model
from isobit_onnx.building import build_onnx


def test_a_second_calibration_observes_with_the_session_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    class Counted(onnx_model.ObservingSession):
        def __init__(self, *args: object) -> None:
            made.append(self)
            super().__init__(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(onnx_model, "ObservingSession", Counted)
    network = NETWORKS["residual"]()
    sim = isobit.QuantSim(build_onnx(network))
    sim.calibrate([network.batch(4, seed=0)])
    first = sim.statistics
    sim.calibrate([network.batch(4, seed=1)], "mse")
    assert len(made) == 1
    sim.calibrate([network.batch(4, seed=0)])
    assert len(made) == 1
    assert all(sim.statistics[site] == first[site] for site in first)
    sim.calibrate([network.batch(4, seed=0)], sample_limit=None)
    assert len(made) == 2
    sim.apply(FoldBatchNorms())  # other weights
    sim.calibrate([network.batch(4, seed=0)], sample_limit=None)
    assert len(made) == 3
    fresh = isobit.QuantSim(build_onnx(network))
    fresh.apply(FoldBatchNorms())
    fresh.calibrate([network.batch(4, seed=0)], sample_limit=None)
    assert dict(fresh.encodings) == dict(sim.encodings)
    np.testing.assert_array_equal(*(s.run(network.batch(2))[next(iter(s.graph.outputs))] for s in (sim, fresh)))
