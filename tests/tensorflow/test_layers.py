"""Every kind of layer: the simulator without quantizers is the Keras model, and onnxruntime agrees with its export."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops

from isobit_tensorflow.backend import TensorFlowBackend


def image(*shape: int) -> keras.KerasTensor:
    return keras.Input(shape or (8, 8, 4))


def single_layer(layer, *shape: int) -> keras.Model:
    x = image(*shape)
    return keras.Model(x, layer(x))


def randomized(model: keras.Model) -> keras.Model:
    """Every variable away from its initial zeros and ones."""
    rng = np.random.default_rng(0)
    for variable in model.variables:
        if variable.dtype == "float32":
            low = 0.5 if "variance" in variable.path or "gamma" in variable.path else -0.5
            variable.assign(rng.uniform(low, 1.0, variable.shape))
    return model


def check(model: keras.Model, *expected_ops: str, tolerance: float = 1e-5):
    """Open, run, export; returns the opened model. The export itself compares with onnxruntime."""
    randomized(model)
    opened = TensorFlowBackend().open(model)
    rng = np.random.default_rng(1)
    batch = {}
    for name in opened.graph.inputs:
        info = opened.graph.tensors[name]
        shape = (3, *(n if isinstance(n, int) else 6 for n in info.shape[1:]))
        real = info.dtype == "float32"
        batch[name] = (rng.standard_normal(shape) if real else rng.integers(0, 5, shape)).astype(info.dtype)
    outputs = opened.run(batch)
    arrays = list(batch.values())
    expected = keras.tree.flatten(model(arrays[0] if len(arrays) == 1 else arrays, training=False))
    for value, reference in zip(outputs.values(), expected, strict=True):
        np.testing.assert_allclose(value, reference, rtol=tolerance, atol=tolerance)
    native = keras.tree.flatten(opened.native(arrays[0] if len(arrays) == 1 else arrays))
    for value, called in zip(outputs.values(), native, strict=True):
        np.testing.assert_allclose(value, called, rtol=tolerance, atol=tolerance)
    opened.to_onnx()
    assert [note for note in opened.graph.notes if not note.startswith("names that Keras")] == []
    ops_of_graph = [node.op for node in opened.graph.nodes]
    for op in expected_ops:
        assert op in ops_of_graph, ops_of_graph
    return opened


CONVOLUTIONS = {
    "same, stride 2": lambda: single_layer(L.Conv2D(6, 3, 2, "same", activation="relu"), 9, 8, 4),
    "dilated": lambda: single_layer(L.Conv2D(6, 3, dilation_rate=2, padding="same")),
    "groups": lambda: single_layer(L.Conv2D(6, 3, groups=2)),
    "one axis": lambda: single_layer(L.Conv1D(6, 3, padding="causal", dilation_rate=2), 10, 4),
    "three axes": lambda: single_layer(L.Conv3D(5, 2, padding="same", strides=2), 4, 5, 6, 3),
    "depthwise": lambda: single_layer(L.DepthwiseConv2D(3, 2, "same", depth_multiplier=2)),
    "depthwise, dilated": lambda: single_layer(L.DepthwiseConv2D(3, dilation_rate=2)),
    "depthwise, one axis": lambda: single_layer(L.DepthwiseConv1D(3), 10, 4),
    "separable": lambda: single_layer(L.SeparableConv2D(6, 3, padding="same", depth_multiplier=2, activation="relu")),
    "separable, one axis": lambda: single_layer(L.SeparableConv1D(6, 3), 10, 4),
    "transposed": lambda: single_layer(L.Conv2DTranspose(6, 3, 2, "same")),
    "transposed, valid": lambda: single_layer(L.Conv2DTranspose(6, 2, 3)),
    "transposed, output padding": lambda: single_layer(L.Conv2DTranspose(6, 3, 2, "same", output_padding=1)),
    "transposed, one axis": lambda: single_layer(L.Conv1DTranspose(6, 4, 2, "same"), 10, 4),
    "transposed, three axes": lambda: single_layer(L.Conv3DTranspose(3, 3, 2), 3, 4, 3, 2),
    "unknown size": lambda: single_layer(L.Conv2D(6, 3, 2, "same"), None, None, 4),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str) -> None:
    check(CONVOLUTIONS[name](), "ConvTranspose" if "transposed" in name else "Conv")


WINDOWS = {
    "max": (lambda: single_layer(L.MaxPooling2D(3, 2, "same")), "MaxPool"),
    "max, jumping": (lambda: single_layer(L.MaxPooling2D(1, 2)), "MaxPool"),
    "average": (lambda: single_layer(L.AveragePooling2D(3, 2, "same"), 7, 8, 4), "AveragePool"),
    "average, one axis": (lambda: single_layer(L.AveragePooling1D(2), 8, 4), "AveragePool"),
    "max, three axes": (lambda: single_layer(L.MaxPooling3D(2), 4, 4, 4, 2), "MaxPool"),
    "global": (lambda: single_layer(L.GlobalAveragePooling2D()), "GlobalAveragePool"),
    "global, kept": (lambda: single_layer(L.GlobalAveragePooling2D(keepdims=True)), "GlobalAveragePool"),
    "global max": (lambda: single_layer(L.GlobalMaxPooling2D()), "GlobalMaxPool"),
    "global of a sequence": (lambda: single_layer(L.GlobalAveragePooling1D(), 6, 4), "ReduceMean"),
    "padding": (lambda: single_layer(L.ZeroPadding2D(((1, 2), (0, 3)))), "Pad"),
    "cropping": (lambda: single_layer(L.Cropping2D(((1, 2), (0, 3)))), "Slice"),
    "nearest": (lambda: single_layer(L.UpSampling2D((2, 3))), "Resize"),
    "bilinear": (lambda: single_layer(L.UpSampling2D(2, interpolation="bilinear")), "Resize"),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_windows(name: str) -> None:
    make, op = WINDOWS[name]
    check(make(), op)


NORMALIZATION = {
    "batch": (lambda: single_layer(L.BatchNormalization()), "BatchNormalization"),
    "batch, without scale": (lambda: single_layer(L.BatchNormalization(scale=False)), "BatchNormalization"),
    "batch, features": (lambda: single_layer(L.BatchNormalization(), 5), "BatchNormalization"),
    "batch, axis 1": (lambda: single_layer(L.BatchNormalization(axis=1)), "BatchNormalization"),
    "layer": (lambda: single_layer(L.LayerNormalization(), 6, 8), "LayerNormalization"),
    "layer, two axes": (lambda: single_layer(L.LayerNormalization(axis=(-2, -1)), 6, 8), "LayerNormalization"),
    "group": (lambda: single_layer(L.GroupNormalization(2)), "GroupNormalization"),
    "rms": (lambda: single_layer(L.RMSNormalization(), 6, 8), "RMSNormalization"),
    "adapted": (lambda: single_layer(L.Normalization(mean=[1.0, 2, 3, 4], variance=[1.0, 2, 3, 4])), "Div"),
    "rescaled": (lambda: single_layer(L.Rescaling(1 / 127.5, -1)), "Mul"),
}


@pytest.mark.parametrize("name", NORMALIZATION)
def test_normalization(name: str) -> None:
    make, op = NORMALIZATION[name]
    check(make(), op)


ACTIVATIONS = {
    "relu": "Relu", "relu6": "Clip", "sigmoid": "Sigmoid", "tanh": "Tanh", "silu": "Swish", "gelu": "Gelu",
    "hard_sigmoid": "HardSigmoid", "hard_silu": "HardSwish", "softmax": "Softmax", "log_softmax": "LogSoftmax",
    "softplus": "Softplus", "softsign": "Softsign", "selu": "Selu", "elu": "Elu", "exponential": "Exp",
    "mish": "Mish", "leaky_relu": "LeakyRelu", "celu": "Celu",
}  # fmt: skip


def test_activations_by_name_as_argument_and_as_layer() -> None:
    """One model with all of them: on an image, where softmax works along the channels."""
    x = image(4, 4, 3)
    outputs = [L.Activation(name)(x) for name in ACTIVATIONS]
    outputs += [L.Conv2D(2, 1, activation=name, name=f"conv_{name}")(x) for name in ("relu", "softmax", "gelu")]
    outputs += [L.ReLU(6.0)(x), L.ReLU(negative_slope=0.1)(x), L.LeakyReLU(0.2)(x), L.ELU(0.7)(x), L.Softmax()(x)]
    outputs += [L.PReLU(shared_axes=(1, 2))(x), L.PReLU()(x), L.Dense(3, activation=L.LeakyReLU(0.3))(x)]
    outputs += [L.Activation(lambda t: ops.relu(t) * ops.sigmoid(t))(x)]
    opened = check(keras.Model(x, outputs), *set(ACTIVATIONS.values()), "PRelu")
    names = [node.name for node in opened.graph.nodes]
    assert {"conv_relu", "conv_relu/relu"} <= set(names)


def test_dense_of_any_rank_and_einsum() -> None:
    x = image(4, 5, 6)
    heads = L.EinsumDense("abcd,def->abcef", output_shape=(4, 5, 2, 3), bias_axes="ef")
    joined = L.EinsumDense("abcef,efd->abcd", output_shape=(4, 5, 6), bias_axes="d")
    opened = check(keras.Model(x, [L.Dense(3)(x), joined(heads(x))]), "Linear")
    linear = [node for node in opened.graph.nodes if node.op == "Linear"]
    assert [opened.graph.weights[node.inputs[1]].shape for node in linear] == [(3, 6), (6, 6), (6, 6)]


def test_attention_is_one_form_however_it_is_written() -> None:
    """A MultiHeadAttention layer: inner products quantized, scale at the product, heads by transpositions."""
    x, y = keras.Input((5, 8)), keras.Input((7, 8))
    attention = L.MultiHeadAttention(2, 4, value_dim=3, name="attention")
    opened = check(keras.Model([x, y], attention(x, y)), "MatMul", "Softmax")
    products = [node for node in opened.graph.nodes if node.op == "MatMul"]
    assert [node.attributes.get("scale") for node in products] == [pytest.approx(0.5), None]
    assert sum(node.op == "Linear" for node in opened.graph.nodes) == 4
    assert "attention/query/kernel" in opened.graph.weights


def test_attention_with_a_mask_and_plain_attention() -> None:
    x = keras.Input((5, 8))
    mask = keras.Input((5, 5), dtype="bool")
    check(keras.Model([x, mask], L.MultiHeadAttention(2, 4)(x, x, attention_mask=mask)), "Where")
    check(keras.Model(x, L.MultiHeadAttention(2, 4)(x, x, use_causal_mask=True)), "Where")
    check(keras.Model(x, L.Attention(use_scale=True)([x, x])), "MatMul")


def test_operations_of_keras_ops() -> None:
    x, y = image(6, 4), keras.Input((6, 4))
    outputs = [
        x + y, x * 2.0 - 1.0, x / (ops.abs(y) + 1.0), ops.maximum(x, y), ops.square(x), ops.relu(x), ops.gelu(x),
        x[:, 1:5:2], x[:, 0], x[..., -1], x[:, None], ops.matmul(x, ops.transpose(y, (0, 2, 1))),
        ops.einsum("bij,bkj->bik", x, y), ops.reshape(x, (-1, 24)), ops.concatenate([x, y], axis=1),
        ops.stack([x, y], axis=1), ops.split(x, 2, axis=-1)[1], ops.mean(x, axis=1), ops.max(x, axis=-1, keepdims=True),
        ops.sum(x, axis=(1, 2)), ops.expand_dims(x, 1), ops.pad(x, ((0, 0), (1, 2), (0, 0))), ops.clip(x, -0.5, 0.5),
        ops.where(x > y, x, y), ops.softmax(x, axis=1), ops.swapaxes(x, 1, 2), ops.moveaxis(x, 2, 1),
        ops.rsqrt(ops.abs(x) + 1.0), ops.tile(x, (1, 2, 1)), ops.cast(x > 0, "float32"),
    ]  # fmt: skip
    check(keras.Model([x, y], outputs), "Add", "Slice", "Gather", "MatMul", "Split", "Where", "Tile")


def test_operations_of_a_model_that_was_saved_and_loaded(tmp_path: Path) -> None:
    """Their arguments went through JSON: a tuple of slices, of axes or of sizes comes back as a list."""
    x, y = image(6, 4), keras.Input((6, 4))
    outputs = [
        x[:, 1:5:2], x[:, 0], x[..., -1], x[:, None], x[:, ::-1], x[:, 4:0:-2, 1:], x[..., -2::-1], x[:, 1],
        ops.transpose(x, (0, 2, 1)), ops.reshape(x, (-1, 24)), ops.stack([x, y], axis=1), ops.split(x, [1, 3], axis=1),
        ops.sum(x, axis=(1, 2)), ops.pad(x, ((0, 0), (1, 2), (0, 0))), ops.tile(x, (1, 2, 1)), ops.flip(x, (1, 2)),
        ops.moveaxis(x, (1, 2), (2, 1)), ops.einsum("bij,bkj->bik", x, y), ops.expand_dims(x, (1, 3)),
        ops.squeeze(x[:, :1], 1), ops.where(x > y, x, y), ops.repeat(x, 2, axis=1),
    ]  # fmt: skip
    model = keras.Model([x, y], outputs)
    model.save(tmp_path / "model.keras")
    check(keras.models.load_model(tmp_path / "model.keras"), "Slice", "Gather")


def test_operations_on_images_stay_channels_first() -> None:
    """Between convolutions nothing is transposed: broadcasting, joining, padding, reducing, squeeze-and-excite."""
    x = image(8, 8, 4)
    y = L.Conv2D(6, 3, padding="same", name="one")(x)
    gate = L.Dense(6, activation="sigmoid")(L.GlobalAveragePooling2D()(y))
    y = y * L.Reshape((1, 1, 6))(gate)
    y = y * np.arange(6, dtype=np.float32) + 0.5
    y = L.Concatenate()([y, ops.relu(y)])
    y = ops.pad(y, ((0, 0), (1, 1), (1, 1), (0, 0)))
    y = y - ops.mean(y, axis=(1, 2), keepdims=True)
    y = L.Conv2D(3, 3, name="two")(y)
    opened = check(keras.Model(x, L.Flatten()(L.AveragePooling2D(2)(y))))
    transposes = [node for node in opened.graph.nodes if node.op == "Transpose"]
    assert len(transposes) == 2  # the model's input, and in front of Flatten


def test_custom_layers_are_opened() -> None:
    @keras.saving.register_keras_serializable("tests")
    class Gate(L.Layer):
        def build(self, shape):
            self.scale = self.add_weight(name="scale", shape=(shape[-1],))
            self.inner = L.Dense(shape[-1], name="inner")
            self.inner.build(shape)

        def call(self, x, training=None):
            if training:
                return x
            return x * self.scale + self.inner(x)

    layer = Gate(name="gate")
    model = single_layer(layer, 5)
    before = len(layer.inner._inbound_nodes)
    opened = check(model, "Mul", "Linear", "Add")
    assert {"gate/scale", "gate/inner/kernel"} <= set(opened.graph.weights)
    assert len(layer.inner._inbound_nodes) == before  # the user's layers are as they were


RECURRENT = {
    "lstm": lambda: single_layer(L.LSTM(4, return_sequences=True), 7, 5),
    "last state": lambda: single_layer(L.LSTM(4), 7, 5),
    "gru": lambda: single_layer(L.GRU(4, return_sequences=True), 7, 5),
    "gru, reset in front": lambda: single_layer(L.GRU(4, reset_after=False), 7, 5),
    "backwards": lambda: single_layer(L.GRU(4, go_backwards=True, return_sequences=True), 7, 5),
    "both ways": lambda: single_layer(L.Bidirectional(L.LSTM(3, return_sequences=True)), 7, 5),
    "both ways, summed": lambda: single_layer(L.Bidirectional(L.GRU(3), merge_mode="sum"), 7, 5),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers(name: str) -> None:
    check(RECURRENT[name](), "GRU" if "gru" in name or "summed" in name or name == "backwards" else "LSTM")


def test_between_recurrent_layers_the_sequence_stays_first() -> None:
    x = keras.Input((7, 5))
    y = L.LSTM(4, return_sequences=True)(x)
    opened = check(keras.Model(x, L.Dense(2)(L.GRU(3, return_sequences=True, name="gru")(y))))
    layer = ["Transpose", "Reshape"]
    assert [node.op for node in opened.graph.nodes] == [
        "Transpose", "LSTM", *layer, "GRU", *layer, "Transpose", "Linear",
    ]  # fmt: skip
    assert opened.graph.tensors[opened.graph.node("gru").inputs[0]].shape == (7, "batch", 4)


def test_shapes_and_wrappers() -> None:
    x = image(6, 4)
    words = keras.Input((3,), dtype="int32")
    outputs = [
        L.Permute((2, 1))(x), L.Reshape((3, 8))(x), L.Reshape((-1, 2))(x), L.Flatten()(x),
        L.TimeDistributed(L.Dense(3))(x), L.TimeDistributed(L.Conv1D(2, 2))(L.Reshape((2, 3, 4))(x)),
        L.Embedding(9, 4)(words), L.Average()([x, x * 2.0, x * 3.0]), L.RepeatVector(2)(L.Flatten()(x)),
        L.Lambda(lambda t: t[:, ::2] * 2.0)(x), L.Identity()(x),
    ]  # fmt: skip
    check(keras.Model([x, words], outputs), "Gather", "Reshape", "Transpose")
