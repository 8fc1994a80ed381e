"""Costs of the neutral graph are those that Keras counts."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2
from tensorflow.python.framework.ops import get_stats_for_node_def

import isobit
from isobit.budget import Cost, layer_costs
from isobit.plugins import registry


def test_parameters_are_the_trainable_weights_and_bytes_all_of_them() -> None:
    inputs = keras.Input((12, 10, 3))
    x = keras.layers.Conv2D(8, 3, strides=2, padding="same")(inputs)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.DepthwiseConv2D(3)(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(5)(x))
    cost = Cost.sum(layer_costs(registry().open(model).graph).values())
    assert cost.parameters == sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
    assert cost.bytes == 4 * model.count_params()
    assert cost.macs == 3 * 8 * 9 * 6 * 5 + 8 * 9 * 4 * 3 + 8 * 5


def test_multiply_accumulates_are_half_of_the_operations_that_tensorflows_profiler_counts() -> None:
    """Layer by layer; of transposed layers the profiler takes an estimate by outputs, which this does not."""
    inputs = keras.Input((12, 10, 3))
    x = keras.layers.Conv2D(8, 3, strides=2, padding="same")(inputs)
    x = keras.layers.DepthwiseConv2D(3)(x)
    x = keras.layers.SeparableConv2D(6, 3, padding="same")(x)
    x = keras.layers.Conv1D(4, 3, padding="causal")(keras.layers.Reshape((-1, 6))(x))
    model = keras.Model(inputs, keras.layers.Dense(5)(keras.layers.GlobalAveragePooling1D()(x)))
    graph = registry().open(model).graph
    traced = tf.function(lambda images: model(images, training=False)).get_concrete_function(
        tf.TensorSpec((1, 12, 10, 3))
    )
    frozen = convert_variables_to_constants_v2(traced).graph.as_graph_def()
    with tf.Graph().as_default() as plain:
        tf.graph_util.import_graph_def(frozen, name="")
        counted = [
            get_stats_for_node_def(plain, op.node_def, "flops").value
            for op in plain.get_operations()
            if op.type in ("Conv2D", "DepthwiseConv2dNative", "MatMul")
        ]
    assert [2 * cost.macs for cost in layer_costs(graph).values() if cost.macs] == counted


def test_a_smaller_model_has_so_many_trainable_weights() -> None:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(16, 3, activation="relu")(inputs)
    x = keras.layers.Conv2D(24, 3, activation="relu")(x)
    model = keras.Model(inputs, keras.layers.Dense(5)(keras.layers.GlobalAveragePooling2D()(x)))
    images = np.random.default_rng(0).normal(size=(32, 8, 8, 3)).astype(np.float32)
    small = isobit.compress(model, images, keep=0.5, cost="parameters", trials=1)
    count = sum(int(np.prod(weight.shape)) for weight in small.model.trainable_weights)
    assert count == small.report.after.parameters < 0.51 * model.count_params()
    again = keras.models.clone_model(small.model)  # made from its configuration, as a saved one is
    assert again.is_float
    small.model.compile(optimizer=keras.optimizers.SGD(1e-2), loss="mse")
    losses = small.model.fit(images, model.predict(images, verbose=0), epochs=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
