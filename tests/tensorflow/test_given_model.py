"""The opened model is compared with the user's own at the first calibration."""

from __future__ import annotations

import re

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops

import isobit
from isobit.errors import ModelError
from isobit.placement import QuantConfig
from isobit_tensorflow.backend import TensorFlowBackend
from isobit_tensorflow.given_model import GivenModel
from isobit_tensorflow.read.rules import dense

IMAGES = np.random.default_rng(0).standard_normal((8, 6, 6, 3)).astype(np.float32)


@keras.saving.register_keras_serializable("tests")
class Noisy(L.Layer):
    """Another result in every run."""

    def call(self, x):
        return x + keras.random.normal((1,), seed=None)


def image_model() -> keras.Model:
    x = keras.Input((6, 6, 3), name="image")
    y = L.BatchNormalization(name="norm")(L.Conv2D(4, 3, name="conv")(L.RandomFlip(name="flip")(x)))
    y = L.Dense(6, activation="relu", name="hidden")(L.Flatten(name="flat")(y))
    return keras.Model(x, L.Dense(3, name="head")(y))


def inputs_in_a_dict() -> keras.Model:
    b, a = keras.Input((4,), name="b"), keras.Input((4,), name="a")
    y = L.Dense(3, name="left")(a) - L.Dense(3, name="right")(b)
    return keras.Model({"b": b, "a": a}, {"difference": y, "classes": ops.argmax(y, axis=-1)})


def compared(sim: isobit.QuantSim) -> bool:
    return not any("not compared" in note for note in sim.report.notes)


def test_models_are_compared_and_agree() -> None:
    assert compared(isobit.quantize(image_model(), IMAGES, progress=False))
    rows = {"b": IMAGES[:, 0, :, 0][:, :4], "a": IMAGES[:, 1, :, 0][:, :4]}
    assert compared(isobit.quantize(inputs_in_a_dict(), rows, progress=False))
    a, b = keras.Input((4,)), keras.Input((4,))
    listed = keras.Model([a, b], [L.Dense(3)(a) - L.Dense(3)(b), L.Dense(2)(b)])
    assert compared(isobit.quantize(listed, [(rows["a"], rows["b"])], progress=False))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras saves so
def test_a_model_file_is_compared(tmp_path) -> None:
    image_model().save(tmp_path / "model.keras")
    assert compared(isobit.quantize(tmp_path / "model.keras", IMAGES, progress=False))


def test_given_tensors_lie_as_the_graph_has_them() -> None:
    backend_model = TensorFlowBackend().open(image_model())
    given = backend_model.run_given({"image": IMAGES}, ["conv", "hidden/relu", "elsewhere"])
    assert given["conv"].shape == (8, 4, 4, 4)
    assert set(given) == {"conv", "hidden/relu"}
    (head,) = backend_model.run_given({"image": IMAGES}).values()
    np.testing.assert_allclose(head, backend_model.run({"image": IMAGES})["head"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("wrong", ["hidden", "head"])
def test_a_difference_names_the_first_tensor(wrong: str, monkeypatch) -> None:
    usual = dense.linear

    def broken(call, name, x, kernel, layout, bias=None, flat=()):
        return usual(call, name, x, kernel, layout, None if name == wrong else bias, flat)

    monkeypatch.setattr(dense, "linear", broken)
    model = image_model()
    for layer in (model.get_layer("hidden"), model.get_layer("head")):
        layer.bias.assign(np.ones(layer.bias.shape, np.float32))
    tensor = "hidden/relu" if wrong == "hidden" else "head"
    with pytest.raises(ModelError, match=f"'head' is .* dB.*first tensor that differs is {re.escape(repr(tensor))}"):
        isobit.QuantSim(model).calibrate(IMAGES, "minmax", progress=False)
    sim = isobit.QuantSim(model, check=False)
    sim.calibrate(IMAGES, "minmax", progress=False)


def test_a_model_trained_since_is_not_compared() -> None:
    model = image_model()
    sim = isobit.QuantSim(model)
    model.get_layer("head").kernel.assign(np.zeros((6, 3), np.float32))
    sim.calibrate(IMAGES, "minmax", progress=False)
    assert any("weights have changed since it was opened" in note for note in sim.report.notes)


def test_a_model_that_is_different_in_every_run_is_not_compared() -> None:
    x = keras.Input((6, 6, 3), name="image")
    backend_model = TensorFlowBackend().open(keras.Model(x, L.Dense(3)(x)))
    sim = isobit.QuantSim.of_backend_model(backend_model, isobit.QuantSim(image_model()).target, QuantConfig())
    noisy = keras.Model(x, Noisy()(L.Dense(3)(x)))
    backend_model._given = GivenModel.of(noisy, "image", "dense", {})
    sim.calibrate(IMAGES, "minmax", progress=False)
    assert any("different in every run" in note for note in sim.report.notes)


def test_half_precision_is_compared_more_loosely() -> None:
    x = keras.Input((6, 6, 3), name="image")
    y = L.Conv2D(8, 3, activation="relu", dtype="mixed_float16")(x)
    model = keras.Model(x, L.Dense(3, dtype="float32")(L.Flatten()(y)))
    assert compared(isobit.quantize(model, IMAGES, progress=False))


class Widened(L.Layer):
    """No weights, but inputs that Keras rounds to the layer's type before they are squared in float32."""

    def call(self, x):
        return ops.square(ops.cast(x, "float32"))


def test_a_layer_without_weights_may_be_of_half_precision() -> None:
    x = keras.Input((6, 6, 3), name="image")
    model = keras.Model(x, L.Dense(3)(L.Flatten()(Widened(dtype="mixed_bfloat16")(x))))
    assert compared(isobit.quantize(model, IMAGES, progress=False))
