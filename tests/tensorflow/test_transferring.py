"""Encodings from Keras to what tf2onnx writes: other names, added transposes, batch norms as products and sums."""

from __future__ import annotations

import keras
import numpy as np
import onnx
import tensorflow as tf
import tf2onnx

import isobit
from isobit.techniques import FoldBatchNorms
from isobit.testing.networks import NETWORKS
from isobit_tensorflow.reference_networks import build_keras


def by_tf2onnx(model: keras.Model) -> onnx.ModelProto:
    names = [tensor.name for tensor in model.inputs]
    specs = [tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype) for tensor in model.inputs]

    @tf.function(input_signature=specs, autograph=False)
    def call(*tensors: tf.Tensor) -> list[tf.Tensor]:
        named = dict(zip(names, tensors, strict=True))
        return tf.nest.flatten(model(named if isinstance(model.input, dict) else tensors[0]))

    proto, _ = tf2onnx.convert.from_function(call, input_signature=specs, opset=17)
    return proto


def images(*shape: int) -> list[np.ndarray]:
    return [np.random.default_rng(seed).standard_normal((2, *shape)).astype(np.float32) for seed in range(2)]


def check(model: keras.Model, data: list, *, planned: bool = True) -> None:
    sim = isobit.QuantSim(model)
    sim.apply(FoldBatchNorms())
    sim.calibrate(data)
    proto = by_tf2onnx(model)
    transferred = isobit.transfer(sim.encodings, sim, proto)
    assert transferred.complete, transferred
    exported_sim = isobit.QuantSim(proto)
    exported_sim.apply(FoldBatchNorms())
    assert set(exported_sim.graph.weights).isdisjoint(sim.graph.weights)
    if planned:
        whole = isobit.transfer(sim.encodings, sim, exported_sim)
        assert whole.complete, whole
        assert set(whole.encodings) == set(exported_sim.plan.placements)
    back = isobit.transfer(transferred.encodings, proto, sim)
    assert back.complete, back
    assert dict(back.encodings) == dict(sim.encodings)


def test_reference_networks() -> None:
    for name in ("inverted_residual", "two_inputs"):
        network = NETWORKS[name]()
        check(build_keras(network), [network.batch(2, seed) for seed in range(2)])


def test_images_with_the_channels_last() -> None:
    """Keras' own order of axes from end to end: same and valid padding, a residual sum, a reshape before the end."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    x = inputs = keras.Input((12, 12, 3))
    x = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(x)
    x = y = layers.ReLU(6.0)(layers.BatchNormalization(beta_initializer="random_normal")(x))
    y = layers.DepthwiseConv2D(3, padding="same")(y)
    y = layers.Conv2D(8, 1)(layers.Activation("relu")(y))
    x = layers.Add()([x, y])
    x = layers.MaxPooling2D()(x)
    x = layers.Dense(5, bias_initializer="random_normal")(layers.Flatten()(x))
    model = keras.Model(inputs, x)
    for layer in model.layers:  # a bias of zeros would be left out by the exporter
        if getattr(layer, "bias", None) is not None:
            layer.bias.assign(np.random.default_rng(1).standard_normal(layer.bias.shape) * 0.1)
    check(model, images(12, 12, 3))
