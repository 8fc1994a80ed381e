"""The float model as a teacher in `fit`: its loss against NumPy, and what it shares."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import isobit
from isobit.errors import ModelError
from isobit.quantsim import QuantSim
from isobit.training import distillation_loss

X = np.random.default_rng(2).standard_normal((64, 12)).astype(np.float32)


def simulator() -> QuantSim:
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(24, activation="relu"), keras.layers.Dense(5, name="classes", trainable=False)]
    sim = QuantSim(keras.Sequential([keras.Input((12,)), *layers]), weights="int3", activations="uint4")
    sim.calibrate(X, "minmax", progress=False)
    return sim


@pytest.mark.parametrize("temperature", [None, 3.0])
def test_the_loss_is_that_of_the_float_model(temperature: float | None) -> None:
    sim = simulator()
    ((_, wanted),), ((_, given),) = sim.run_float(X).items(), sim.run(X).items()
    loss = sim.distillation(temperature, weight=2)(sim.model(X), X)
    np.testing.assert_allclose(float(loss), 2 * distillation_loss(given, wanted, temperature), rtol=1e-3)


def test_fit_learns_from_the_teacher_alone() -> None:
    sim = simulator()
    student = sim.trainable()
    distill = sim.distillation()
    shared = {n for n, v in distill.model.parameters.items() if v is student.parameters[n]}
    assert shared == {"classes/kernel", "classes/bias"}
    wanted = np.asarray(distill.model(X))
    assert distill.add_to(student) is student
    student.compile(keras.optimizers.Adam(3e-3))
    losses = student.fit(X, batch_size=64, epochs=60, verbose=0).history["loss"]
    assert losses[-1] < 0.8 * losses[0]
    np.testing.assert_array_equal(np.asarray(distill.model(X)), wanted)
    np.testing.assert_allclose(float(distill(student(X), X)), losses[-1], rtol=0.2)
    with pytest.raises(ModelError, match="added to a simulator"):
        distill.add_to(keras.Sequential([keras.layers.Dense(1)]))


def test_the_model_as_it_came_teaches_a_smaller_one() -> None:
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(24, activation="relu"), keras.layers.Dense(24, activation="relu")]
    model = keras.Sequential([keras.Input((12,)), *layers, keras.layers.Dense(5)])
    small = isobit.compress(model, X, method="weight-svd", keep=0.5, trials=1, progress=False)
    distill = small.distillation()
    expected = distillation_loss(np.asarray(small.model(X)), np.asarray(model(X)))
    np.testing.assert_allclose(float(distill(small.model(X), X)), expected, rtol=1e-3)
    distill.add_to(small.model).compile(keras.optimizers.Adam(3e-3))
    losses = small.model.fit(X, batch_size=64, epochs=20, verbose=0).history["loss"]
    assert losses[-1] < 0.8 * losses[0]
