"""Loops of the user's own around a tape: what goes wrong in them is said, as `fit` says it."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L

import isobit

ROWS = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)


def _sim(mode: str = "") -> isobit.QuantSim:
    x = keras.Input((8,), name="rows")
    model = keras.Model(x, L.Dense(4, name="head")(L.Dense(6, activation="relu", name="hidden")(x)))
    sim = isobit.quantize(model, ROWS, recipe="basic", method="minmax", target="default", progress=False)
    if mode:
        sim.trainable(mode)
    return sim


def _step(model: keras.Model, optimizer: keras.Optimizer, rows, variables=None, scale: float = 1.0) -> float:
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(model(rows, training=True))) * scale
    variables = model.trainable_variables if variables is None else variables
    optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
    return float(loss)


def test_a_loop_trains() -> None:
    model = _sim("learned").model
    optimizer = keras.optimizers.Adam(1e-3)
    losses = [_step(model, optimizer, ROWS) for _ in range(8)]
    assert losses[-1] < losses[0]


def test_nan_is_named_with_its_pass() -> None:
    model = _sim().model
    optimizer = keras.optimizers.SGD(0.1)
    _step(model, optimizer, ROWS)
    _step(model, optimizer, ROWS, scale=float("nan"))
    with pytest.raises(isobit.errors.ModelError, match=r"pass 3 of training: weight 'head/bias' holds NaN"):
        _step(model, optimizer, ROWS)


def test_nan_in_the_data_is_named() -> None:
    model = _sim().model
    rows = ROWS.copy()
    rows[3, 2] = np.nan
    with pytest.raises(isobit.errors.ModelError, match=r"pass 1 of training: input 'rows' holds NaN"):
        _step(model, keras.optimizers.SGD(0.1), rows)


def test_nan_inside_is_named_by_its_tensor() -> None:
    model = _sim().model
    model.parameters["hidden/kernel"].assign(np.full((8, 6), np.nan, np.float32))
    with pytest.raises(isobit.errors.ModelError, match=r"pass 1 of training: 'hidden' holds NaN"):
        _step(model, keras.optimizers.SGD(0.1), ROWS)


def test_a_traced_step_stops_at_nan() -> None:
    model = _sim().model
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build(model.trainable_variables)

    @tf.function
    def step(rows):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(rows, training=True)))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    assert np.isfinite(step(ROWS))
    with pytest.raises(tf.errors.InvalidArgumentError, match="input rows holds NaN"):
        step(np.full_like(ROWS, np.nan))


def test_before_calibration() -> None:
    x = keras.Input((8,))
    sim = isobit.QuantSim(keras.Model(x, L.Dense(4)(x)))
    with pytest.raises(isobit.errors.ModelError, match="calibrate first"):
        _step(sim.model, keras.optimizers.SGD(0.1), ROWS)


def test_variables_taken_before_the_grids_were_learned() -> None:
    sim = _sim()
    old = list(sim.model.trainable_variables)
    optimizer = keras.optimizers.SGD(0.1)
    sim.trainable("learned")
    _step(sim.model, optimizer, ROWS, old)
    with pytest.warns(UserWarning, match="no grid that is learned"):
        _step(sim.model, optimizer, ROWS, old)
    _step(sim.model, optimizer, ROWS, old)  # once is enough


def test_the_simulator_from_before_the_grids_were_learned() -> None:
    sim = _sim()
    old = sim.model
    sim.trainable("learned")
    with pytest.raises(isobit.errors.ModelError, match="another simulator"):
        _step(old, keras.optimizers.SGD(0.1), ROWS)
