"""The digits network with rescaled channels in Keras: cured, with the weights that the ONNX backend gets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from isobit.placement import QuantConfig
from isobit.plugins import registry
from isobit.quantsim import QuantSim
from isobit.techniques import CorrectBias, EqualizeCrossLayers
from isobit.testing.networks import Network
from isobit.testing.rescaling import folded_with_relu, rescaled
from isobit_tensorflow.backend import TensorFlowBackend
from isobit_tensorflow.reference_networks import build_keras

FOLDER = Path(__file__).parents[2] / "examples" / "digits"
DATA = {"image": np.load(FOLDER / "calibration.npz")["image"][:48]}
TEST = {name: values[:200] for name, values in np.load(FOLDER / "test.npz").items()}


@pytest.fixture(scope="module")
def network() -> Network:
    pytest.importorskip("onnxruntime")
    return rescaled(folded_with_relu(registry().open(FOLDER / "model.onnx"), "digits"))


def simulator(model, weights: str) -> QuantSim:
    return QuantSim.of_backend_model(model, registry().target("default"), QuantConfig(weights))


def accuracy(run) -> float:
    return float(np.mean(run({"image": TEST["image"]})["logits"].argmax(1) == TEST["label"]))


def test_equalization_cures_rescaled_channels(network: Network) -> None:
    sim = simulator(TensorFlowBackend().open(build_keras(network)), "int8 per-tensor")
    plain = accuracy(sim.backend_model.run)
    sim.calibrate(DATA)
    assert accuracy(sim.run) < plain - 0.5
    sim.apply(EqualizeCrossLayers(), data=DATA)
    for equalized in (
        sim,
        simulator(sim.backend_model.copy(), "int8"),
    ):  # per channel too: activations were rescaled as well
        equalized.calibrate(DATA)
        assert accuracy(equalized.run) >= plain - 0.005


def test_weights_are_those_of_the_onnx_backend(network: Network) -> None:
    from isobit_onnx.reference_networks import build_onnx

    keras_sim = simulator(TensorFlowBackend().open(build_keras(network)), "int8 per-tensor")
    onnx_sim = simulator(registry().backend("onnx").open(build_onnx(network)), "int8 per-tensor")
    for sim in (keras_sim, onnx_sim):
        sim.apply(EqualizeCrossLayers(), data=DATA)
        sim.apply(CorrectBias("analytic"))
    compare(keras_sim, onnx_sim, 1e-6)
    for method in ("minmax", "percentile=99"):
        for sim in (keras_sim, onnx_sim):
            (corrected,) = sim.apply(CorrectBias(), data=DATA, method=method)
            assert len(corrected.changed) == 26
        compare(keras_sim, onnx_sim, 1e-6)


def compare(keras_sim: QuantSim, onnx_sim: QuantSim, tolerance: float) -> None:
    compared = 0
    for keras_node, onnx_node in zip(keras_sim.graph.nodes, onnx_sim.graph.nodes, strict=True):
        assert keras_node.op == onnx_node.op
        for name, onnx_name in zip(keras_node.inputs, onnx_node.inputs, strict=True):
            if name in keras_sim.graph.weights:
                value = onnx_sim.backend_model.weight(onnx_name)
                limit = tolerance * max(1.0, float(np.abs(value).max()))
                np.testing.assert_allclose(
                    keras_sim.backend_model.weight(name), value, rtol=0, atol=limit, err_msg=name
                )
                compared += 1
    assert compared == 52  # 25 convolutions and a linear layer, weight and bias
