"""Weights of the float model go into a simulator, before and after batch norms were folded."""

from __future__ import annotations

import warnings
from pathlib import Path

import keras
import numpy as np
import pytest

import isobit
from isobit.errors import GridWarning, ModelError
from isobit.techniques import EqualizeCrossLayers, FoldBatchNorms

X = np.random.default_rng(0).standard_normal((8, 8, 8, 3)).astype(np.float32)


def network(seed: int) -> keras.Model:
    keras.utils.set_random_seed(seed)
    x = image = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, use_bias=False)(x)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization(name="norm")(x))
    x = keras.layers.BatchNormalization(name="second")(keras.layers.DepthwiseConv2D(3)(x))
    y = keras.layers.BatchNormalization(name="third")(keras.layers.ReLU()(x))
    model = keras.Model(image, keras.layers.Dense(5)(keras.layers.Flatten()(keras.layers.Add()([x, y]))))
    draw = np.random.default_rng(seed)
    model.set_weights([w if w.ndim > 1 else draw.uniform(0.5, 1.5, w.shape) for w in model.get_weights()])
    return model


@pytest.mark.parametrize("folds", [False, True])
def test_weights_of_the_float_model_come_in(folds: bool, tmp_path: Path) -> None:
    sim = isobit.QuantSim(network(0))
    if folds:
        sim.apply(FoldBatchNorms())
    sim.calibrate([X], "minmax", progress=False)
    other, grids = network(3), dict(sim.encodings)
    with pytest.warns(GridWarning, match=r"quantized weights do not fit their grids .*: calibrate\(data\) again"):
        sim.model.load_weights_of(other)
    with warnings.catch_warnings():  # those fit as well as they do
        warnings.simplefilter("error")
        sim.model.load_weights_of(other)
    wanted = keras.ops.convert_to_numpy(other(X))
    np.testing.assert_allclose(next(iter(sim.run_float(X).values())), wanted, atol=1e-4)
    assert dict(sim.encodings) == grids
    sim.calibrate([X], "minmax", progress=False)
    expected = next(iter(sim.run(X).values()))
    anew = isobit.QuantSim(other)
    if folds:
        anew.apply(FoldBatchNorms())
    anew.calibrate([X], "minmax", progress=False)
    np.testing.assert_array_equal(next(iter(anew.run(X).values())), expected)
    sim.save(tmp_path / "sim")
    np.testing.assert_array_equal(next(iter(isobit.load(tmp_path / "sim", network(0)).run(X).values())), expected)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras saves so
def test_weights_that_do_not_fit_say_so(tmp_path: Path) -> None:
    model = network(3)
    sim, equalized = isobit.QuantSim(network(0)), isobit.QuantSim(network(0))
    sim.model.save_weights(tmp_path / "own.weights.h5")
    model.save_weights(tmp_path / "float.weights.h5")
    sim.apply(FoldBatchNorms())
    equalized.apply(FoldBatchNorms(), EqualizeCrossLayers())
    for name in ("own", "float"):
        with pytest.raises(ModelError, match=r"load_weights_of\(model\)"):
            sim.model.load_weights(tmp_path / f"{name}.weights.h5")
    with pytest.raises(ModelError, match=r"load_weights_of\(model\)"):
        sim.model.set_weights(model.get_weights())
    with pytest.raises(ModelError, match="is not built as the model that was opened"):
        sim.model.load_weights_of(keras.Model(model.input, model.layers[-2].output))
    with pytest.raises(ModelError, match="technique beside FoldBatchNorms has changed"):
        equalized.model.load_weights_of(model)


@pytest.mark.parametrize("norm", ["norm", "third"])
def test_a_norm_that_does_not_fold_any_more_is_named(norm: str) -> None:
    sim, model = isobit.QuantSim(network(0)), network(3)
    sim.apply(FoldBatchNorms())
    model.get_layer(norm).moving_variance.assign(-np.ones(4, np.float32))
    with pytest.raises(ModelError, match=f"fold otherwise .*: the batch norm '{norm}' does not fold with these values"):
        sim.model.load_weights_of(model)


def test_a_load_that_fails_changes_nothing_and_one_that_does_not_is_no_step_of_training() -> None:
    model = network(3)
    sim = isobit.QuantSim(network(0))
    for load in (sim.model.load_weights_of, lambda other: sim.model.set_weights(other.get_weights())):
        with pytest.raises(ModelError):
            load(keras.Model(model.input, model.layers[-2].output))
        assert not sim.model.is_reloaded
    sim.calibrate([X], "minmax", progress=False)
    trained = sim.trainable("learned")
    trained(X, training=True)
    with pytest.warns(GridWarning):
        trained.load_weights_of(model)
    assert trained.is_reloaded
    trained(X, training=True)  # without the warning that a step has changed no grid


def test_statistics_that_layers_have_computed_of_load_where_they_are_the_same() -> None:
    x = keras.Input((3,))
    layer = keras.layers.Normalization(name="scaled")
    layer.adapt(X.reshape(-1, 3))
    model = keras.Model(x, keras.layers.Dense(2)(layer(x)))
    sim = isobit.QuantSim(model)
    model.layers[-1].kernel.assign(np.ones((3, 2), np.float32))
    sim.model.load_weights_of(model)
    rows = X.reshape(-1, 3)[:8]
    np.testing.assert_allclose(next(iter(sim.run_float(rows).values())), model(rows), atol=1e-5)
    layer.adapt_mean.assign(layer.adapt_mean + 1)
    with pytest.raises(ModelError, match="'scaled/mean' has another value than in the model that was opened"):
        sim.model.load_weights_of(model)
