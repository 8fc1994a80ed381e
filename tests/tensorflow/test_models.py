"""Models as people write them: nested, shared, several inputs and outputs; and what cannot be opened."""

from __future__ import annotations

import keras
import numpy as np
import onnxruntime
import pytest
import tensorflow as tf
from keras import layers as L
from keras import ops

from isobit.errors import IsobitError, ModelError
from isobit.graph import Tensor, Weight, differences
from isobit_tensorflow.backend import TensorFlowBackend


def opened(model):
    return TensorFlowBackend().open(model)


def ops_of(model) -> list[str]:
    return [node.op for node in model.graph.nodes]


def test_channels_last_inputs_are_the_users() -> None:
    """The graph's input is the user's tensor, a Transpose behind it; a Permute of his in front is no node."""
    x = keras.Input((8, 6, 3), name="image")
    conv = L.Conv2D(4, 3, name="conv")
    plain = opened(keras.Model(x, conv(x)))
    assert plain.graph.tensors["image"].shape == ("batch", 8, 6, 3)
    assert ops_of(plain) == ["Transpose", "Conv", "Transpose"]
    x = keras.Input((3, 8, 6), name="image")
    turned = opened(keras.Model(x, L.Permute((3, 1, 2))(conv(L.Permute((2, 3, 1))(x)))))
    assert ops_of(turned) == ["Conv"]
    image = np.random.default_rng(0).standard_normal((2, 8, 6, 3)).astype(np.float32)
    np.testing.assert_allclose(
        plain.run({"image": image})["conv"],
        next(iter(turned.run({"image": image.transpose(0, 3, 1, 2)}).values())).transpose(0, 2, 3, 1),
        rtol=1e-6,
    )


def test_a_functional_and_a_sequential_model_have_one_graph() -> None:
    layers = [L.Conv2D(4, 3, activation="relu", name="conv"), L.Flatten(), L.Dense(3, activation="softmax", name="fc")]
    sequential = keras.Sequential([keras.Input((8, 8, 2)), *layers])
    x = inputs = keras.Input((8, 8, 2))
    for layer in layers:
        x = layer(x)
    from_sequential, from_functional = opened(sequential), opened(keras.Model(inputs, x))
    assert (
        differences(from_sequential.graph, from_functional.graph, from_sequential.weight, from_functional.weight) == []
    )
    assert ops_of(from_sequential) == ["Transpose", "Conv", "Relu", "Transpose", "Reshape", "Linear", "Softmax"]
    assert [node.name for node in from_sequential.graph.nodes if node.op in ("Conv", "Relu")] == ["conv", "conv/relu"]


def test_nested_models_shared_layers_several_inputs_and_outputs() -> None:
    tower_in = keras.Input((6,))
    tower = keras.Model(tower_in, L.Dense(4, activation="tanh", name="dense")(tower_in), name="tower")
    inner = keras.Sequential([keras.Input((4,)), L.Dense(4, name="dense")], name="inner")
    left, right = keras.Input((6,), name="left"), keras.Input((6,), name="right")
    a, b = tower(left), tower(right)
    model = keras.Model({"left": left, "right": right}, {"score": inner(a * b), "sum": ops.sum(a + b, axis=-1)})
    backend_model = opened(model)
    graph = backend_model.graph
    assert set(graph.inputs) == {"left", "right"}
    assert set(graph.outputs) == {"score", "sum"}
    readers = [use.node.name for use in graph.uses("dense/kernel")]
    assert readers == ["tower/dense", "tower/dense#1"]  # one weight, two calls
    assert len({name for name in graph.weights if name.endswith("kernel")}) == 2  # two layers of one name
    rng = np.random.default_rng(0)
    batch = {name: rng.standard_normal((3, 6)).astype(np.float32) for name in ("left", "right")}
    for name, value in model(batch).items():
        np.testing.assert_allclose(backend_model.run(batch)[name], value, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(backend_model.native(batch)[name], value, rtol=1e-5, atol=1e-6)


def test_an_input_that_is_returned_and_a_tensor_returned_twice() -> None:
    x = keras.Input((4,), name="x")
    y = L.Dense(3, name="fc")(x)
    backend_model = opened(keras.Model(x, [x, y, y]))
    batch = {"x": np.ones((2, 4), np.float32)}
    outputs = backend_model.run(batch)
    assert len(outputs) == 3
    np.testing.assert_array_equal(outputs["x"], batch["x"])
    np.testing.assert_array_equal(outputs["fc"], outputs["fc_1"])
    backend_model.to_onnx()


def test_an_operation_outside_the_vocabulary_stays_in_float() -> None:
    """It runs as Keras runs it, is noted, survives saving, and tf2onnx converts it for the export."""
    x = keras.Input((6,), name="x")
    y = L.Dense(3, name="fc")(ops.arctan(ops.arccos(ops.tanh(L.Dense(6, name="first")(x)))))
    model = keras.Model(x, y)
    backend_model = opened(model)
    assert ops_of(backend_model) == ["Linear", "Tanh", "keras::Arccos", "keras::Arctan", "Linear"]
    assert sum("outside the vocabulary" in note for note in backend_model.graph.notes) == 2
    batch = {"x": np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)}
    np.testing.assert_allclose(backend_model.run(batch)["fc"], model(batch["x"]), rtol=1e-5, atol=1e-6)
    restored = TensorFlowBackend().restore(backend_model.state())
    np.testing.assert_array_equal(restored.run(batch)["fc"], backend_model.run(batch)["fc"])
    proto, names = backend_model.to_onnx()
    assert {node.op_type for node in proto.graph.node} >= {"Gemm", "Atan"}
    assert names[Tensor("first")].name == "first"


def test_gelu_of_a_layer_that_stays_whole_is_exported() -> None:
    """TensorFlow computes it by Erfc, which tf2onnx does not know."""
    x = keras.Input((6,), name="x")

    def gelu_of_angles(t: tf.Tensor) -> tf.Tensor:
        return tf.math.atanh(0.5 * tf.math.sin(tf.nn.gelu(t) + 0.1 * tf.math.erfc(t)))

    backend_model = opened(keras.Model(x, L.Dense(3, name="fc")(L.Lambda(gelu_of_angles, name="own")(x))))
    batch = {"x": np.linspace(-4, 4, 48, dtype=np.float32).reshape(8, 6)}
    proto, _ = backend_model.to_onnx()
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, batch)[0], backend_model.run(batch)["fc"], rtol=1e-5, atol=1e-6)


def test_dropout_is_between_the_nodes_of_the_graph() -> None:
    x = keras.Input((6, 4))
    y = L.SpatialDropout1D(0.5, name="drop")(L.Dense(8, name="first")(x))
    backend_model = opened(keras.Model(x, L.Add(name="sum")([L.Dense(8, name="second")(y), y])))
    assert ops_of(backend_model) == ["Linear", "Linear", "Add"]
    (dropout,) = backend_model.native.behaviour.dropouts
    assert dropout.tensor == "first"
    assert dropout.readers == (("second", 0), ("sum", 1))
    assert dropout.noise == (-1, 1, -1)


def test_dropout_inside_attention_acts_on_the_weights() -> None:
    x = keras.Input((6, 16))
    backend_model = opened(keras.Model(x, L.MultiHeadAttention(2, 8, dropout=0.3, name="attention")(x, x)))
    (dropout,) = backend_model.native.behaviour.dropouts
    (softmax,) = (node for node in backend_model.graph.nodes if node.op == "Softmax")
    (mixed,) = (node for node in backend_model.graph.nodes if softmax.outputs[0] in node.inputs)
    assert (dropout.tensor, dropout.rate) == (softmax.outputs[0], 0.3)
    assert dropout.readers == ((mixed.name, 0),)


def test_weights_come_out_in_canonical_layout() -> None:
    x = keras.Input((8, 8, 4))
    y = L.DepthwiseConv2D(3, depth_multiplier=2, name="depth")(L.Conv2D(4, (3, 2), name="conv")(x))
    backend_model = opened(keras.Model(x, L.Dense(5, name="fc")(L.GlobalAveragePooling2D()(y))))
    native = backend_model.native.parameters
    np.testing.assert_array_equal(
        backend_model.weight("conv/kernel"), native["conv/kernel"].numpy().transpose(3, 2, 0, 1)
    )
    np.testing.assert_array_equal(backend_model.weight("fc/kernel"), native["fc/kernel"].numpy().T)
    depth = native["depth/kernel"].numpy()
    assert backend_model.weight("depth/kernel").shape == (8, 1, 3, 3)
    np.testing.assert_array_equal(backend_model.weight("depth/kernel")[3, 0], depth[:, :, 1, 1])
    assert backend_model.graph.has_site(Weight("depth/kernel"))


# --- what cannot be opened -------------------------------------------------------------------------------------------


@keras.saving.register_keras_serializable("tests")
class Branching(L.Layer):
    def call(self, x):
        return x if float(ops.sum(x)) > 0 else -x

    def compute_output_shape(self, shape):
        return shape


def refused() -> dict[str, tuple[object, str]]:
    x = keras.Input((4,))
    return {
        "unbuilt": (keras.Sequential([L.Dense(3)], name="raw"), "raw.*not built.*keras.Input"),
        "branch on values": (keras.Model(x, Branching(name="branch")(x)), "branch.*keras.ops"),
        "training": (keras.Model(x, L.Dropout(0.5, name="always")(x, training=True)), "always.*training=True"),
        "texts": (
            keras.Model(t := keras.Input((1,), dtype="string", name="words"), L.Flatten()(t)),
            "'words' is texts",
        ),
        "no model": (L.Dense(3), "opens Keras models"),
    }


@pytest.mark.parametrize("name", refused())
def test_refused_models_say_why(name: str) -> None:
    model, message = refused()[name]
    with pytest.raises(ModelError, match=message):
        opened(model)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras' own
def test_a_model_that_keras_has_quantized_is_refused() -> None:
    x = keras.Input((4,))
    model = keras.Model(x, L.Dense(3, name="dense")(x))
    model.get_layer("dense").quantize("int8")
    with pytest.raises(ModelError, match="dense.*quantized by Keras"):
        opened(model)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras saves so
def test_files_that_are_no_models(tmp_path) -> None:
    path = tmp_path / "model.keras"
    with pytest.raises(ModelError, match="model.keras"):
        opened(path)
    path.write_bytes(b"nothing")
    with pytest.raises(ModelError, match="model.keras"):
        opened(path)
    x = keras.Input((4,))
    unsafe = keras.Model(x, L.Lambda(lambda t: t * 2.0)(x))
    unsafe.save(path)
    with pytest.raises(ModelError, match="safe"):
        opened(path)
    assert issubclass(ModelError, IsobitError)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras saves so
def test_a_model_file_is_a_model(tmp_path) -> None:
    x = keras.Input((4,), name="x")
    keras.Model(x, L.Dense(3, name="fc")(x)).save(tmp_path / "model.keras")
    backend_model = opened(tmp_path / "model.keras")
    assert backend_model.run({"x": np.ones((2, 4), np.float32)})["fc"].shape == (2, 3)


def test_another_keras_backend_is_told_to_change(monkeypatch) -> None:
    model = keras.Sequential([keras.Input((4,)), L.Dense(3)])
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ModelError, match="'jax'.*KERAS_BACKEND=tensorflow"):
        opened(model)
