"""Training scales keeps what the encodings of a plan owe each other: onnxruntime runs the exported file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import onnxruntime
import pytest
from keras import layers as L

import isobit
import isobit_tensorflow.model  # noqa: F401 (registers the simulator's classes)


def dense() -> keras.Model:
    x = keras.Input((6,))
    return keras.Model(x, L.Dense(4)(L.Dense(16, activation="relu")(x)))


def branches() -> keras.Model:
    """A Concat ties two tensors to one grid."""
    x = keras.Input((6, 6, 3))
    stem = L.ReLU()(L.BatchNormalization()(L.Conv2D(4, 3)(x)))
    both = L.Concatenate()([L.Conv2D(3, 1, name="left")(stem), L.Conv2DTranspose(3, 1, name="right")(stem)])
    return keras.Model(x, L.Dense(3)(L.GlobalAveragePooling2D()(both)))


def gated() -> keras.Model:
    """Sigmoid and softmax have ranges that are known beforehand."""
    x = keras.Input((6,))
    mixed = L.Multiply()([L.Dense(8, activation="sigmoid")(x), L.Dense(8, activation="softmax")(x)])
    return keras.Model(x, L.Dense(3)(mixed))


def twice() -> keras.Model:
    """One layer, two calls with inputs of their own."""
    x, layer = keras.Input((6,)), L.Dense(6)
    return keras.Model(x, layer(L.ReLU()(layer(x))))


NETWORKS: dict[str, Callable[[], keras.Model]] = {
    "dense": dense, "branches": branches, "gated": gated, "twice": twice
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_the_runtime_computes_what_was_trained(name: str, tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    model = NETWORKS[name]()
    x = np.random.default_rng(0).standard_normal((16, *model.input_shape[1:])).astype(np.float32)
    sim = isobit.quantize(model, x, target="default", progress=False)
    before, simulator = sim.encodings, sim.trainable()
    simulator.compile(keras.optimizers.Adam(5e-3), "mse")
    simulator.fit(x, 0.5 * model.predict(x, verbose=0), epochs=8, verbose=0)
    after = sim.encodings
    for site, placement in sim.plan.placements.items():
        if placement.scale_of is not None:
            source, weight = (after[factor].scale for factor in placement.scale_of)
            np.testing.assert_array_equal(after[site].scale, source * weight, str(site))
        if placement.fixed_range is not None:
            assert after[site] == before[site]
    for members in sim.plan.groups().values():
        assert len({after[member.site].scale.tobytes() for member in members}) == 1
    assert sum(after[site] != before[site] for site in after) > len(after) / 2

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(str(sim.export(tmp_path)["model"]), options)
    executed = session.run(None, {session.get_inputs()[0].name: x})[0]
    (simulated,) = sim.run(x).values()
    noise = np.square(executed - simulated).mean()
    allowed = 1e-3 if name == "gated" else 1e-4  # a few roundings, in the kernels of softmax and sigmoid
    assert noise <= allowed * np.square(simulated).mean()

    simulator.save(tmp_path / "simulator.keras")
    loaded = keras.saving.load_model(tmp_path / "simulator.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), simulator.predict(x, verbose=0))
    assert len(loaded.trainable_variables) == len(simulator.trainable_variables)
    assert dict(sim.backend_model.copy().encodings()) == dict(sim.backend_model.encodings())


def test_encodings_that_are_given_are_kept() -> None:
    x = np.random.default_rng(0).standard_normal((16, 6)).astype(np.float32)
    sim = isobit.quantize(dense(), x, progress=False)
    weights, bias = sim.plan.of_kind("weight"), sim.plan.of_kind("bias")[0]
    before = sim.encodings
    changed = {p.site: isobit.Encoding.of("int8", 0.5) for p in weights if p.site == bias.scale_of[1]}
    sim.backend_model.set_quantizers(changed)
    assert sim.encodings[bias.site] == before[bias.site]
    sim.backend_model.set_quantizers({site: before[site] for site in changed})
    sim.model.quantizers[bias.scale_of[0]].scale.assign(0.25)
    np.testing.assert_array_equal(sim.encodings[bias.site].scale, 0.25 * before[bias.scale_of[1]].scale)


def test_mistakes_in_training(tmp_path: Path) -> None:
    """A simulator from before `trainable()`, and a loss of NaN, which moves no range."""
    x = np.random.default_rng(0).standard_normal((16, 6)).astype(np.float32)
    early = isobit.QuantSim(dense()).model
    early.compile("sgd", "mse")
    with pytest.raises(isobit.errors.ModelError, match="calibrate first"):
        early.fit(x, x[:, :4], verbose=0)
    sim = isobit.quantize(dense(), x, progress=False)
    early = sim.model
    early.compile("sgd", "mse")
    built = keras.optimizers.SGD()
    built.build(sim.model.trainable_variables)
    simulator = sim.trainable("pact", weights="frozen")
    assert {variable.name for variable in sim.quantizer_parameters()} == {"log_scale"}
    with pytest.raises(isobit.errors.ModelError, match="what trainable"):
        early.fit(x, x[:, :4], verbose=0)
    with pytest.raises(isobit.errors.ModelError, match="what trainable"):
        early(x, training=True)
    before = sim.encodings
    simulator.compile(built, "mse")
    with pytest.raises(isobit.errors.ModelError, match="the optimizer was built before trainable"):
        simulator.fit(x, x[:, :4], verbose=0)
    simulator.compile("sgd", "mse")
    with pytest.raises(isobit.errors.ModelError, match="step 2 of training: the loss is NaN, and has reached weight"):
        simulator.fit(x, np.full((16, 4), [[1]] * 8 + [[np.nan]] * 8), batch_size=8, shuffle=False, verbose=0)
    after = sim.encodings
    assert all(np.isfinite(after[site].scale).all() for site in before)
    bad = x, np.full((16, 4), np.nan)
    with pytest.raises(isobit.errors.ModelError, match="the loss is NaN"):
        simulator.fit(*bad, 8, 1, 0, [keras.callbacks.History()])
    with pytest.raises(isobit.errors.ModelError, match="the loss is NaN"):
        simulator.fit(*bad, verbose=0, callbacks=keras.callbacks.CallbackList(model=simulator))
    with pytest.raises(isobit.errors.ModelError, match="holds NaN: the loss or a gradient of some step"):
        sim.export(tmp_path / "written")


def test_weights_files_between_simulators(tmp_path: Path) -> None:
    """What was learned reaches a simulator that is calibrated alone, and that one's file is where learning starts."""
    x = np.random.default_rng(0).standard_normal((16, 6)).astype(np.float32)

    def made() -> isobit.QuantSim:
        keras.utils.set_random_seed(0)
        return isobit.quantize(dense(), x, progress=False)

    trained, plain, again = made(), made(), made()
    calibrated = plain.encodings
    plain.model.save_weights(tmp_path / "plain.weights.h5")
    simulator = trained.trainable()
    simulator.compile(keras.optimizers.Adam(1e-2), "mse")
    simulator.fit(x, x[:, :4], epochs=3, verbose=0)
    simulator.save_weights(tmp_path / "trained.weights.h5")
    assert dict(trained.encodings) != dict(calibrated)
    plain.model.load_weights(tmp_path / "trained.weights.h5")
    assert dict(plain.encodings) == dict(trained.encodings)
    np.testing.assert_array_equal(plain.model.predict(x, verbose=0), simulator.predict(x, verbose=0))
    resumed = again.trainable()
    resumed.load_weights(tmp_path / "trained.weights.h5")
    for mine, other in zip(again.quantizer_parameters(), trained.quantizer_parameters(), strict=True):
        np.testing.assert_array_equal(mine, other)
    assert dict(again.encodings) == dict(trained.encodings)
    resumed.load_weights(tmp_path / "plain.weights.h5")
    assert dict(again.encodings) == dict(calibrated)
