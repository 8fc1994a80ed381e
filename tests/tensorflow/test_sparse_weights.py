"""Sparse weights in Keras' training: zeros stay zero through steps of an optimizer, and in the integers of the file."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest

import isobit
from isobit.techniques import SparsifyWeights
from isobit.testing.conformance.pruning import zeros_of_fours


@pytest.mark.parametrize("keep_zeros", [True, False])
def test_zeros_stay_through_fit(tmp_path: Path, keep_zeros: bool) -> None:
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
    fours = zeros_of_fours(sim.export(tmp_path)["model"])
    assert len(fours) == 2
    assert all((found >= 2).all() for found in fours.values()) == keep_zeros
