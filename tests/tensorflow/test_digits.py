"""The digits network in Keras: the plan and weight encodings of the ONNX backend, INT8 accuracy, training at 4 bits."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import isobit
from isobit.graph import Input, Tensor, Weight
from isobit.graph.isomorphism import correspondence
from isobit.plugins import registry
from isobit.techniques import FoldBatchNorms
from isobit.testing.networks import Network
from isobit_tensorflow.reference_networks import build_keras

FOLDER = Path(__file__).parents[2] / "examples" / "digits"


@pytest.fixture(scope="module")
def network() -> Network:
    pytest.importorskip("onnxruntime")
    opened = registry().backend("onnx").open(FOLDER / "model.onnx")
    return Network("digits", opened.graph, {name: opened.weight(name) for name in opened.graph.weights})


@pytest.fixture(scope="module")
def model(network: Network) -> keras.Model:
    return build_keras(network)


@pytest.fixture(scope="module")
def test_set() -> tuple[np.ndarray, np.ndarray]:
    arrays = np.load(FOLDER / "test.npz")
    return arrays["image"], arrays["label"]


def accuracy(run, data: tuple[np.ndarray, np.ndarray]) -> float:
    image, label = data
    return float(np.mean(run({"image": image})["logits"].argmax(1) == label))


def test_plan_and_weight_encodings_are_those_of_the_onnx_backend(model, network, test_set) -> None:
    data = np.load(FOLDER / "calibration.npz")["image"]
    # Corrected biases agree to float accuracy, and weights are paired by equal values here.
    keras_sim, onnx_sim = (isobit.quantize(each, data, recipe="basic") for each in (model, FOLDER / "model.onnx"))
    pairs = correspondence(
        onnx_sim.graph, keras_sim.graph, onnx_sim.backend_model.weight, keras_sim.backend_model.weight
    )
    assert set(pairs) == set(onnx_sim.graph.tensors)
    names = {old.name: new.name for old, new in zip(onnx_sim.graph.nodes, keras_sim.graph.nodes, strict=True)}
    weights = {
        old: new
        for a, b in zip(onnx_sim.graph.nodes, keras_sim.graph.nodes, strict=True)
        for old, new in zip(a.inputs, b.inputs, strict=True)
        if old in onnx_sim.graph.weights
    }

    def in_keras(site):
        if isinstance(site, Input):
            return Input(names[site.node], site.index)
        return Tensor(pairs[site.name]) if isinstance(site, Tensor) else Weight(weights[site.name])

    plan = {in_keras(site): (p.spec, p.kind) for site, p in onnx_sim.plan.placements.items()}
    assert {site: (p.spec, p.kind) for site, p in keras_sim.plan.placements.items()} == plan
    constants = [site for site in onnx_sim.encodings if isinstance(site, Weight) and not site.name.endswith(".bias")]
    checked = 0
    for site in constants:
        encoding, expected = keras_sim.encodings[in_keras(site)], onnx_sim.encodings[site]
        if expected.spec.bits == 8:
            assert encoding == expected, site
            checked += 1
    assert checked == 26
    tensors = [site for site in onnx_sim.encodings if isinstance(site, Tensor)]
    same = [keras_sim.encodings[in_keras(site)] == onnx_sim.encodings[site] for site in tensors]
    assert np.mean(same) > 0.9  # the last bits of two runtimes differ, and seldom reach an encoding
    plain = accuracy(keras_sim.run_float, test_set)
    assert plain > 0.99
    assert accuracy(keras_sim.run, test_set) >= plain - 0.005


def train_set(held_out: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The digits of scikit-learn that are not in the test set, as examples/digits makes them."""
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    small = (digits.images / 16).astype(np.float32)[..., None]
    image = np.round(tf.image.resize(small, (32, 32)).numpy() * 256) / 256
    image = image.transpose(0, 3, 1, 2).astype(np.float32)
    test_images = {array.tobytes() for array in held_out}
    keep = [index for index, array in enumerate(image) if array.tobytes() not in test_images]
    return image[keep], digits.target[keep]


@pytest.mark.slow
def test_two_epochs_of_training_repair_four_bits(model, test_set) -> None:
    image, label = train_set(test_set[0])
    assert len(image) == 1797 - 360
    sim = isobit.QuantSim(model, target="default", weights="int4", activations="uint4")
    sim.apply(FoldBatchNorms())
    sim.calibrate(np.load(FOLDER / "calibration.npz")["image"])
    before = accuracy(sim.run, test_set)
    simulator = sim.model
    simulator.compile(
        keras.optimizers.Adam(1e-3), {"logits": keras.losses.SparseCategoricalCrossentropy(from_logits=True)}
    )
    keras.utils.set_random_seed(0)
    simulator.fit({"image": image}, {"logits": label}, batch_size=64, epochs=2, verbose=0)
    after = accuracy(sim.run, test_set)
    print(f"W4A4 top-1: {before:.4f} calibrated, {after:.4f} after two epochs")
    assert after > before + 0.005
