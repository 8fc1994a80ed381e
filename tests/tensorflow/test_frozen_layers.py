"""Layers that the user froze stay frozen, and so do the biases that folding gives them."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import pytest
from keras import layers as L

import isobit

KINDS: dict[str, tuple[Callable[[], keras.Layer], tuple[int, ...]]] = {
    "conv": (lambda: L.Conv2D(4, 3, use_bias=False), (6, 6, 3)),
    "depthwise": (lambda: L.DepthwiseConv2D(3, use_bias=False), (6, 6, 3)),
    "dense": (lambda: L.Dense(4, use_bias=False), (5,)),
    "with a bias": (lambda: L.Conv1D(4, 3), (8, 3)),
}


@pytest.mark.parametrize("is_frozen", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_folded_biases_are_frozen_with_their_layer(kind: str, is_frozen: bool) -> None:
    layer, shape = KINDS[kind]
    base = keras.Sequential([keras.Input(shape), layer(), L.BatchNormalization(), L.ReLU()], name="base")
    base.trainable = not is_frozen
    inputs = keras.Input(shape)
    model = keras.Model(inputs, L.Dense(2, name="head")(L.Flatten()(base(inputs, training=False))))
    data = np.random.default_rng(0).standard_normal((4, *shape)).astype(np.float32)
    simulator = isobit.quantize(model, [data], progress=False, method="minmax").model
    trained = {variable.path for variable in simulator.trainable_variables}
    assert {"head/kernel", "head/bias"} <= trained
    assert bool(trained - {"head/kernel", "head/bias"}) == (not is_frozen)
    assert any(name != "head/bias" and "bias" in name for name in simulator.parameters)
