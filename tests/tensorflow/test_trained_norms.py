"""Batch norms in `fit`: frozen after some epochs, and folded at the end with what was learned."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

import isobit
from isobit.graph import Tensor
from isobit.quantsim import QuantSim
from isobit.techniques import FoldBatchNorms

X = np.random.default_rng(1).standard_normal((32, 6, 6, 3)).astype(np.float32)
Y = np.random.default_rng(2).integers(0, 4, 32)


def test_norms_are_frozen_and_folded_at_the_end() -> None:
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Conv2D(8, 3, use_bias=False, name="conv"), keras.layers.BatchNormalization(name="norm")]
    layers += [keras.layers.Flatten(), keras.layers.Dense(4)]
    sim = QuantSim(keras.Sequential([keras.Input((6, 6, 3)), *layers]), weights="int4", activations="uint8")
    sim.calibrate(X, "minmax", progress=False)
    simulator = sim.trainable()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    simulator.compile(keras.optimizers.Adam(1e-2), loss)
    simulator.fit(X, Y, batch_size=32, epochs=2, verbose=0)
    moving = simulator.parameters["norm/moving_mean"].numpy()
    assert moving.any()
    simulator.freeze_batch_norms()
    simulator.fit(X, Y, batch_size=32, epochs=2, verbose=0)
    np.testing.assert_array_equal(simulator.parameters["norm/moving_mean"].numpy(), moving)
    learned = sim.encodings[Tensor("norm")]
    (before,) = sim.run(X).values()
    sim.apply(FoldBatchNorms())
    (after,) = sim.run(X).values()
    assert sim.encodings[Tensor("conv")] == learned
    assert 10 * np.log10(np.square(before).sum() / np.square(after - before).sum().clip(1e-12)) > 38


def test_what_was_trained_comes_back(tmp_path) -> None:
    """From `sim.save`, and from a checkpoint of TensorFlow: weights, moving statistics and grids."""

    def made() -> QuantSim:
        sim = QuantSim(network(), weights="int4", activations="uint8")
        sim.calibrate(X, "minmax", progress=False)
        return sim

    def network() -> keras.Model:
        keras.utils.set_random_seed(0)
        layers = [keras.layers.Conv2D(8, 3), keras.layers.BatchNormalization(), keras.layers.Flatten()]
        return keras.Sequential([keras.Input((6, 6, 3)), *layers, keras.layers.Dense(4)])

    sim, other = made(), made()
    simulator, restored = sim.trainable(), other.trainable()
    simulator.compile(keras.optimizers.Adam(1e-2), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    simulator.fit(X, Y, batch_size=32, epochs=2, verbose=0)
    (expected,) = sim.run(X).values()

    path = tf.train.Checkpoint(model=simulator).save(str(tmp_path / "checkpoint"))
    tf.train.Checkpoint(model=restored).restore(path).expect_partial()
    np.testing.assert_array_equal(*(next(iter(each.run(X).values())) for each in (sim, other)))

    sim.save(tmp_path / "sim")
    loaded = isobit.load(tmp_path / "sim", network())
    np.testing.assert_array_equal(next(iter(loaded.run(X).values())), expected)
    assert dict(loaded.encodings) == dict(sim.encodings)
