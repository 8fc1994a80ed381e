"""What Keras has for training, around a simulator that learns its grids: averages, replicas, and going on later."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L
from strategies import mirrored

import isobit
from isobit.errors import ModelError
from isobit.quantsim import QuantSim

X = np.random.default_rng(1).standard_normal((32, 6, 6, 3)).astype(np.float32)
Y = np.random.default_rng(2).integers(0, 4, 32)


def network() -> keras.Model:
    keras.utils.set_random_seed(0)
    layers = [L.Conv2D(8, 3, activation="relu"), L.Flatten(), L.Dense(12, activation="relu"), L.Dense(4)]
    return keras.Sequential([keras.Input((6, 6, 3)), *layers])


def simulator() -> QuantSim:
    return isobit.quantize(network(), X, weights="int4", recipe="basic", method="minmax", progress=False)


def compiled(model: keras.Model, optimizer: keras.Optimizer) -> keras.Model:
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def fit(model: keras.Model, epochs: int) -> list[float]:
    return model.fit(X, Y, batch_size=16, epochs=epochs, shuffle=False, verbose=0).history["loss"]


def values(model: keras.Model) -> dict[str, np.ndarray]:
    """Of all that trains, under names that two simulators share."""
    return {f"{i} {variable.path}": variable.numpy() for i, variable in enumerate(model.trainable_variables)}


def test_two_replicas_train_what_one_device_does(tmp_path: Path) -> None:
    """Half of each batch each, the grids among what they learn together; the result comes back into `sim`."""
    sim = simulator()
    alone = sim.trainable()
    alone.save(tmp_path / "simulator.keras")
    before = values(alone)
    strategy = mirrored("CPU:0", "CPU:1")
    with strategy.scope():
        replicas = compiled(keras.saving.load_model(tmp_path / "simulator.keras"), keras.optimizers.SGD(0.1))
    losses = fit(compiled(alone, keras.optimizers.SGD(0.1)), 3), fit(replicas, 3)
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)
    assert losses[0][-1] < losses[0][0]
    moved, both = values(alone), values(replicas)
    assert any("log_scale" in name and not np.array_equal(moved[name], before[name]) for name in moved)
    for (name, one), two in zip(moved.items(), both.values(), strict=True):
        np.testing.assert_allclose(two, one, atol=2e-2 * np.abs(one - before[name]).max() + 1e-6, err_msg=name)
    for variable in replicas.trainable_variables:  # the replicas have the same
        first, second = (part.numpy() for part in variable.value.values)
        np.testing.assert_array_equal(first, second)
    sim.model.set_weights(replicas.get_weights())
    np.testing.assert_allclose(next(iter(sim.run(X).values())), replicas.predict(X, verbose=0), atol=1e-5)


def test_a_strategy_that_the_simulator_is_not_of_is_refused() -> None:
    """Opened under its scope, a model trains by it, and comes out as any."""
    strategy = mirrored("CPU:0", "CPU:1")
    alone = simulator().trainable()
    with strategy.scope():
        compiled(alone, keras.optimizers.SGD(0.1))
    with pytest.raises(
        ModelError, match="the optimizer was made under the scope of a strategy, and the simulator was not"
    ):
        fit(alone, 1)
    with strategy.scope():
        sim = simulator()
        replicas = compiled(sim.trainable(), keras.optimizers.SGD(0.1))
    losses = fit(replicas, 2)
    assert losses[1] < losses[0]
    np.testing.assert_allclose(next(iter(sim.run(X).values())), replicas.predict(X, verbose=0), atol=1e-5)


def test_training_goes_on_where_it_was_left(tmp_path: Path) -> None:
    """A checkpoint of simulator and optimizer: the same bits as without the break."""
    sim = simulator()
    sim.save(tmp_path / "sim")
    model = compiled(sim.trainable(), keras.optimizers.Adam(1e-2))
    fit(model, 2)
    path = tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(str(tmp_path / "checkpoint"))
    fit(model, 2)

    loaded = isobit.load(tmp_path / "sim", network())
    again = compiled(loaded.trainable(), keras.optimizers.Adam(1e-2))
    again.optimizer.build(again.trainable_variables)
    tf.train.Checkpoint(model=again, optimizer=again.optimizer).restore(path).assert_existing_objects_matched()
    fit(again, 2)
    for (name, wanted), found in zip(values(model).items(), values(again).values(), strict=True):
        np.testing.assert_array_equal(found, wanted, err_msg=name)
    assert dict(loaded.encodings) == dict(sim.encodings)


def test_a_moving_average_has_the_grids_too() -> None:
    """Of each variable that trains, as Keras' own optimizer averages; `sim` runs the average."""
    sim = simulator()
    start = values(sim.trainable())
    optimizer = keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.7)
    model = compiled(sim.model, optimizer)
    steps: list[dict[str, np.ndarray]] = []
    model.fit(
        X, Y, batch_size=16, epochs=2, shuffle=False, verbose=0,
        callbacks=[keras.callbacks.LambdaCallback(on_train_batch_end=lambda *_, **__: steps.append(values(model)))],
    )  # fmt: skip
    average = steps[0]  # Keras begins with the values behind the first step
    for step in steps[1:]:
        average = {name: 0.7 * average[name] + 0.3 * step[name] for name in average}
    for name, value in values(model).items():
        np.testing.assert_allclose(value, average[name], rtol=1e-5, atol=1e-6, err_msg=name)
    assert any("log_scale" in name and not np.array_equal(start[name], steps[-1][name]) for name in start)
    (expected,) = (np.asarray(model(X)),)
    np.testing.assert_array_equal(next(iter(sim.run(X).values())), expected)
