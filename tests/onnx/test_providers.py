"""onnxruntime's providers: chosen, kept by copies and states, and refused where they are not there."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

import isobit
from isobit.errors import PluginError
from isobit.testing.networks.fully_connected import two_inputs
from isobit_onnx.backend import OnnxBackend
from isobit_onnx.reference_networks import build_onnx
from isobit_onnx.run.session import Session


@pytest.fixture
def used_providers(monkeypatch):
    """The providers of every session that is made."""
    providers_of_sessions = []
    inference_session = onnxruntime.InferenceSession

    def session(*arguments, providers, **settings):
        providers_of_sessions.append(providers)
        return inference_session(*arguments, providers=providers, **settings)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    return providers_of_sessions


def test_the_chosen_providers_run_the_model_its_copies_and_its_observations(used_providers):
    network = two_inputs()
    backend = OnnxBackend(["CPUExecutionProvider"])
    sim = isobit.QuantSim(build_onnx(network), backend=backend)
    sim.calibrate([network.batch(2)])
    expected = sim.run(network.batch(2))
    model = sim.backend_model
    for copy in (model.copy(), backend.restore(model.state())):
        outputs = copy.run(network.batch(2))
        for name, value in expected.items():
            np.testing.assert_array_equal(outputs[name], value)
    assert len(used_providers) >= 4
    assert all(providers == ["CPUExecutionProvider"] for providers in used_providers)


def test_a_provider_that_is_not_there_is_refused_before_the_work(used_providers):
    with pytest.raises(PluginError, match=r"no provider 'CPUExecutor' \(did you mean 'CPUExecutionProvider'\?\)"):
        OnnxBackend(["CPUExecutor"]).open("no-such-file.onnx")
    assert used_providers == []


@pytest.mark.cuda
def test_cuda_runs_where_it_is_asked_for(used_providers):
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime without CUDA")
    network = two_inputs()
    model = OnnxBackend(["CUDAExecutionProvider"]).open(build_onnx(network))
    model.run(network.batch(2))
    assert used_providers == [["CUDAExecutionProvider"]]
    session = Session(model.simulator(), ["CUDAExecutionProvider"])._session
    assert "CUDAExecutionProvider" in session.get_providers()  # a missing driver falls back to the CPU with a warning
