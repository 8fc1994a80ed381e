"""The simulator is a Keras model: compile, fit, save, tf.function, mixed precision, distribution."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L
from strategies import mirrored

import isobit
from isobit.backend import CheckedModel
from isobit.encodings import Encoding
from isobit.graph import Tensor, Weight
from isobit.placement import QuantConfig
from isobit.plugins import registry
from isobit.quantsim import QuantSim
from isobit.techniques import FoldBatchNorms
from isobit.techniques.context import TechniqueContext
from isobit_tensorflow.backend import TensorFlowBackend
from isobit_tensorflow.model import KerasModel
from isobit_tensorflow.simulate.quantizers import Quantizer


def network() -> keras.Model:
    keras.utils.set_random_seed(0)
    x = image = keras.Input((8, 8, 3), name="image")
    x = L.Conv2D(8, 3, padding="same", use_bias=False, name="conv")(x)
    x = L.BatchNormalization(momentum=0.5, name="bn")(x)
    x = L.Dropout(0.5, name="drop")(L.ReLU(name="relu")(x))
    x = L.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(image, L.Dense(4, kernel_regularizer="l2", name="fc")(x), name="small")


def images(count: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 8, 8, 3)).astype(np.float32)


def simulated(model: keras.Model, data=None) -> QuantSim:
    sim = QuantSim.of_backend_model(TensorFlowBackend().open(model), registry().target("default"), QuantConfig())
    sim.calibrate([images()] if data is None else data)
    return sim


def test_it_takes_and_returns_what_the_model_does() -> None:
    model, x = network(), images()
    sim = simulated(model)
    native = sim.model
    np.testing.assert_array_equal(native(x), sim.run({"image": x})["fc"])
    np.testing.assert_array_equal(native.predict(x, batch_size=16, verbose=0), sim.run({"image": x})["fc"])
    paths = {variable.path for variable in native.variables}
    assert {"conv/kernel", "bn/gamma", "bn/moving_mean", "fc/kernel", "fc/bias"} <= paths
    assert [v.path for v in native.trainable_variables] == [v.path for v in model.trainable_variables]


@pytest.mark.parametrize("pads", [((1, 1), (1, 1)), ((0, 1), (0, 1))])
def test_depthwise_convolutions_are_left_no_explicit_padding(pads) -> None:
    """TensorFlow 2.21 drops it when it fuses the bias and the ReLU by oneDNN, and the process ends."""
    x = image = keras.Input((8, 8, 3), name="image")
    x = L.DepthwiseConv2D(3, strides=2, padding="valid", name="half")(L.ZeroPadding2D(pads, name="pad")(x))
    x = L.ReLU(6.0, name="relu6")(L.DepthwiseConv2D(3, padding="same", name="whole")(x))
    native = simulated(keras.Model(image, x)).model
    traced = tf.function(native).get_concrete_function(tf.TensorSpec((4, 8, 8, 3)))
    graphs = [traced.graph.as_graph_def().node, *(f.node_def for f in traced.graph.as_graph_def().library.function)]
    paddings = [n.attr["padding"].s for nodes in graphs for n in nodes if n.op == "DepthwiseConv2dNative"]
    assert len(paddings) == 2
    assert b"EXPLICIT" not in paddings
    np.testing.assert_allclose(traced(images(4)), native(images(4)), atol=0.1)


def test_eager_and_traced_agree_to_the_last_bit_of_a_quantized_tensor() -> None:
    sim, x = simulated(network()), images(seed=3)
    native = sim.model
    eager = native(x)
    traced = tf.function(native)(x)
    step = float(sim.encodings["fc"].scale)
    assert np.abs(np.round((eager - traced) / step)).max() <= 1  # the convolution's last bits may tip a rounding
    assert np.mean(np.asarray(eager) == np.asarray(traced)) > 0.9


def test_save_and_load(tmp_path) -> None:
    sim, x = simulated(network()), images(seed=1)
    native = sim.model
    path = tmp_path / "simulator.keras"
    native.save(path)
    loaded = keras.saving.load_model(path, safe_mode=True)
    np.testing.assert_array_equal(loaded(x), native(x))
    assert {layer.site: layer.encoding for layer in loaded.quantizer_layers} == dict(sim.backend_model.encodings())
    assert list(loaded.parameters) == list(native.parameters)
    assert {v.path for v in loaded.trainable_variables} == {v.path for v in native.trainable_variables}
    again = TensorFlowBackend().open(path)  # a simulator on disk is a model too
    assert dict(again.encodings()) == dict(sim.backend_model.encodings())
    np.testing.assert_array_equal(again.run({"image": x})["fc"], sim.run({"image": x})["fc"])


def test_load_in_a_new_process(tmp_path) -> None:
    """What docs/keras.md imports is enough for Keras to find the classes by the names that they are registered by."""
    sim, x = simulated(network()), images(seed=1)
    sim.model.save(tmp_path / "simulator.keras")
    np.save(tmp_path / "images.npy", x)
    program = """
import keras, numpy
import isobit_tensorflow.model
loaded = keras.saving.load_model("simulator.keras", safe_mode=True)
numpy.save("outputs.npy", loaded(numpy.load("images.npy")))
"""
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "outputs.npy"), sim.model(x))
    config = json.loads(zipfile.ZipFile(tmp_path / "simulator.keras").read("config.json"))
    assert config["registered_name"] == "isobit>Simulator"
    assert {layer["registered_name"] for layer in config["config"]["quantizers"]} == {"isobit>Quantizer"}


def test_training_moves_statistics_and_drops_values() -> None:
    """Batch norm follows the batch with the layer's momentum, dropout acts, the regulariser is in the loss."""
    model, x = network(), images(64) + 1.0
    native = TensorFlowBackend().open(model).native
    batch_norm = model.get_layer("bn")
    before = native.parameters["bn/moving_mean"].numpy().copy()
    outputs = [native(x, training=True).numpy() for _ in range(2)]
    assert not np.array_equal(*outputs)
    model(x, training=True)
    model(x, training=True)
    after = native.parameters["bn/moving_mean"].numpy()
    assert not np.array_equal(after, before)
    np.testing.assert_allclose(after, batch_norm.moving_mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(native.parameters["bn/moving_variance"].numpy(), batch_norm.moving_variance, rtol=1e-3)
    np.testing.assert_allclose(sum(native.losses), sum(model.losses), rtol=1e-6)


def test_fit_learns_weights_and_scales() -> None:
    sim = simulated(network())
    native = sim.trainable()
    layer = native.quantizers[Weight("fc/kernel")]
    assert any(variable is layer.log_scale for variable in native.trainable_variables)
    x, y = images(64), np.random.default_rng(0).integers(0, 4, 64)
    native.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before, kernel = layer.encoding, native.parameters["fc/kernel"].numpy().copy()
    history = native.fit(tf.data.Dataset.from_tensor_slices((x, y)).batch(16), epochs=3, shuffle=False, verbose=0)
    assert history.history["loss"][-1] < history.history["loss"][0]
    assert not np.array_equal(native.parameters["fc/kernel"].numpy(), kernel)
    learned = sim.backend_model.encodings()[Weight("fc/kernel")]
    assert not np.array_equal(learned.scale, before.scale)
    again = sim.backend_model.copy()
    assert again.native.quantizers[Weight("fc/kernel")].log_scale.trainable
    assert dict(again.encodings()) == dict(sim.backend_model.encodings())


def test_mixed_bfloat16_trains() -> None:
    """NumPy has no bfloat16: outputs are float32 there, and the given model is compared as half precision is."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = network()
    finally:
        keras.config.set_dtype_policy("float32")
    sim = isobit.quantize(model, images(), progress=False)
    simulator, x, y = sim.trainable(), images(16), np.zeros(16, np.int64)
    assert simulator.compute_dtype == "bfloat16"
    simulator.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    losses = simulator.fit(x, y, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert sim.run({"image": x})["fc"].dtype == np.float32


def test_mixed_precision() -> None:
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = network()
    finally:
        keras.config.set_dtype_policy("float32")
    sim, x = simulated(model), images()
    assert sim.model.compute_dtype == "float16"
    assert sim.model(x).dtype == tf.float16
    assert sim.model.parameters["conv/kernel"].dtype == "float32"
    plain = np.asarray(model(x), np.float32)
    np.testing.assert_allclose(sim.run_float({"image": x})["fc"], plain, atol=1e-2)
    assert np.abs(np.asarray(sim.model(x), np.float32) - plain).max() < 0.2


@pytest.mark.parametrize("devices", [["CPU:0"], ["CPU:0", "CPU:1"]], ids=["one", "two"])
def test_mirrored_strategy(tmp_path, devices: list[str]) -> None:
    sim = simulated(network())
    path = tmp_path / "simulator.keras"
    sim.model.save(path)
    strategy = mirrored(*devices)
    x, y = images(32), np.zeros(32, np.int64)
    with strategy.scope():
        native = keras.saving.load_model(path)
        native.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = native.parameters["bn/moving_mean"].numpy().copy()
    history = native.fit(x, y, batch_size=16, epochs=2, verbose=0)
    assert history.history["loss"][-1] < history.history["loss"][0]
    assert not np.array_equal(native.parameters["bn/moving_mean"].numpy(), before)


def test_switching_traces_nothing_again() -> None:
    sim, x = simulated(network()), images()
    native = sim.model
    traced = tf.function(native)
    on = traced(x).numpy()
    sim.backend_model.enable(sim.backend_model.encodings(), on=False)
    off = traced(x).numpy()
    assert traced.experimental_get_tracing_count() == 1
    np.testing.assert_allclose(off, network()(x), atol=1e-5)
    assert not np.array_equal(on, off)


def test_data_of_every_kind() -> None:
    model = network()
    x = images(12)
    dataset = tf.data.Dataset.from_tensor_slices(x).batch(4)
    kinds = [x, {"image": x}, [x[:4], x[4:8], x[8:]], dataset, lambda: iter(dataset), (x[i : i + 4] for i in (0, 4, 8)),
             dataset.map(lambda t: (t, 0))]  # fmt: skip
    scales = []
    for data in kinds:
        sim = isobit.QuantSim(model, target="default")
        sim.calibrate(data)
        scales.append(sim.encodings["image"].scale)
    assert len({float(scale) for scale in scales}) == 1


def test_observation_returns_only_what_is_asked() -> None:
    """The traced function's outputs are bounds, samples and counts; memory is that of one batch."""
    from isobit.statistics import Histogram, MinMax, Request
    from isobit_tensorflow.simulate.observe import Observation, watched

    opened = TensorFlowBackend().open(network())
    name = opened.graph.node("conv").outputs[0]
    requests = [Request(Tensor(name), Histogram(limit=64)), Request(Tensor(name), MinMax())]
    items = [watched(request, opened.graph, {}) for request in requests]
    traced = Observation(opened.native, "float", items)
    reduced = traced._reduced(opened.feeds({"image": images(5)}))
    assert keras.tree.map_structure(lambda value: tuple(value.shape), reduced) == {
        "bounds": (2, 2), "sizes": (2,), "samples": [(5, 6, 8)], "wholes": [],
    }  # fmt: skip


def test_passes_are_traced_once() -> None:
    """Calibrating again, other schemes, another batch size and switches find the passes that were traced."""
    sim = simulated(network())
    opened = sim.backend_model.inner
    assert isinstance(opened, KerasModel)
    opened.run({"image": images(16)})
    observation, run = opened._observations["float"], opened._runs["simulated"]
    reduced = observation._reduced
    sim.calibrate([images(16), images(5)], "percentile")
    opened.run({"image": images(3)})
    sim.run_float(images(2))
    sim.calibrate([images(7)])
    assert opened._observations["float"] is observation
    assert opened._runs["simulated"] is run
    assert observation._reduced is reduced


def test_each_pass_has_the_quantizers_that_are_on() -> None:
    sim, x = simulated(network()), {"image": images(4, seed=2)}
    opened = sim.backend_model
    all_on, sites = opened.run(x)["fc"], list(opened.encodings())
    opened.enable(sites[:1], on=False)
    some = opened.run(x)["fc"]
    np.testing.assert_array_equal(some, opened.native(x["image"]))
    opened.enable(sites, on=False)
    none = opened.run(x)["fc"]
    np.testing.assert_array_equal(none, opened.native(x["image"]))
    opened.enable(sites, on=True)
    np.testing.assert_array_equal(opened.run(x)["fc"], all_on)
    assert not np.array_equal(all_on, some)
    assert not np.array_equal(some, none)
    opened.set_quantizers({sites[0]: None})  # the traced passes follow
    np.testing.assert_array_equal(opened.run(x)["fc"], some)
    FoldBatchNorms().apply(TechniqueContext(opened))
    np.testing.assert_allclose(sim.run_float(x)["fc"], none, atol=1e-5)


def test_pruned_and_folded_layers_keep_their_names() -> None:
    from isobit.edits import Slice

    opened = CheckedModel.of(TensorFlowBackend().open(network()))
    x = images()
    before = opened.run({"image": x})["fc"]
    FoldBatchNorms().apply(TechniqueContext(opened))
    np.testing.assert_allclose(opened.run({"image": x})["fc"], before, atol=1e-5)
    assert "bn/gamma" not in opened.native.parameters
    opened.edit([Slice(opened.graph.node("conv").outputs[0], (0, 2, 5))])
    assert tuple(opened.native.parameters["conv/kernel"].shape) == (3, 3, 3, 3)
    assert opened.native(x).shape == (16, 4)


def test_a_quantizer_is_a_layer_that_keras_can_save() -> None:
    layer = Quantizer.of(Tensor("x"), Encoding.of("uint8", 0.25, 3))
    layer.scale.assign(0.5)
    restored = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert (restored.site, restored.encoding) == (layer.site, Encoding.of("uint8", 0.5, 3))
