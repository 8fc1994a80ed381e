"""Sparse weights in Keras' training: zeros stay zero through steps of an optimizer."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import isobit
from isobit.techniques import SparsifyWeights


@pytest.mark.parametrize("keep_zeros", [True, False])
def test_zeros_stay_through_fit(keep_zeros: bool) -> None:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8,))
    outputs = keras.layers.Dense(4)(keras.layers.Dense(12, "relu")(inputs))
    data = np.random.default_rng(0).standard_normal((32, 8)).astype(np.float32)
    sim = isobit.QuantSim(keras.Model(inputs, outputs), data[:2])
    sim.apply(SparsifyWeights("2:4"), data=data)
    sim.calibrate(data)
    model = sim.trainable(keep_zeros=keep_zeros)
    model.compile(keras.optimizers.AdamW(0.01), "mse")
    model.fit(data, np.ones((32, 4), np.float32), epochs=2, verbose=0)
    for name, info in sim.graph.weights.items():
        if len(info.shape) == 2:
            weight = sim.backend_model.weight(name)
            assert ((weight.reshape(len(weight), -1, 4) == 0).sum(2) == 2).all() == keep_zeros
