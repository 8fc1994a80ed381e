"""Preprocessing and augmentation layers in the model: what they do in inference, against Keras' own prediction."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers as L

import isobit
from isobit_tensorflow.backend import TensorFlowBackend

IMAGES = np.random.default_rng(0).uniform(0, 255, (3, 12, 10, 3)).astype(np.float32)

AUGMENTATIONS = {
    "flip": lambda: L.RandomFlip("horizontal"),
    "rotation": lambda: L.RandomRotation(0.2),
    "zoom": lambda: L.RandomZoom(0.2),
    "translation": lambda: L.RandomTranslation(0.2, 0.2),
    "contrast": lambda: L.RandomContrast(0.5),
    "brightness": lambda: L.RandomBrightness(0.5),
    "hue": lambda: L.RandomHue(0.5),
    "saturation": lambda: L.RandomSaturation(0.5),
    "sharpness": lambda: L.RandomSharpness(0.5),
    "posterization": lambda: L.RandomPosterization(3),
    "erasing": lambda: L.RandomErasing(),
    "shear": lambda: L.RandomShear(0.3, 0.3),
    "perspective": lambda: L.RandomPerspective(),
    "grayscale": lambda: L.RandomGrayscale(),
    "blur": lambda: L.RandomGaussianBlur(),
    "elastic": lambda: L.RandomElasticTransform(),
    "jitter": lambda: L.RandomColorJitter(brightness_factor=0.5),
    "invert": lambda: L.RandomInvert(),
    "solarization": lambda: L.Solarization(0.3, 0.4),
    "mix up": lambda: L.MixUp(),
    "cut mix": lambda: L.CutMix(),
    "aug mix": lambda: L.AugMix(),
    "rand augment": lambda: L.RandAugment(),
}


@keras.saving.register_keras_serializable("tests")
class Jitter(L.Layer):
    """An augmentation that a person wrote, which trains unless it is told not to."""

    def call(self, images, training=True):
        return images * keras.random.uniform((), 0.5, 1.5) if training else images


@keras.saving.register_keras_serializable("tests")
class MirrorMore(L.RandomFlip):
    """A layer of Keras with a little more."""


COMPOSED = {
    "own augmentation": lambda x: Jitter()(x),
    "subclass": lambda x: MirrorMore("vertical")(x),
    "block": lambda x: keras.Sequential([L.RandomFlip(), keras.Sequential([L.RandomZoom(0.1), L.GaussianNoise(0.1)])])(
        x
    ),
    "pipeline": lambda x: L.Pipeline([L.RandomFlip(), L.Rescaling(1 / 255), L.RandomRotation(0.1)])(x),
}

DETERMINISTIC = {
    "center crop": lambda: L.CenterCrop(7, 6),
    "center crop of a larger size": lambda: L.CenterCrop(16, 6),
    "center crop, channels first": lambda: L.CenterCrop(7, 2, data_format="channels_first"),
    "resizing": lambda: L.Resizing(8, 9),
    "resizing, nearest": lambda: L.Resizing(24, 30, interpolation="nearest"),
    "resizing with a crop": lambda: L.Resizing(8, 8, crop_to_aspect_ratio=True),
    "resizing with padding": lambda: L.Resizing(8, 8, pad_to_aspect_ratio=True),
    "auto contrast": lambda: L.AutoContrast(),
    "normalization": lambda: L.Normalization(mean=[1.0, 2.0, 3.0], variance=[4.0, 9.0, 16.0]),
}


def agrees(model: keras.Model, data: np.ndarray) -> object:
    backend_model = TensorFlowBackend().open(model)
    (output,) = backend_model.run({backend_model.graph.inputs[0]: data}).values()
    np.testing.assert_allclose(output, model.predict(data, verbose=0), rtol=1e-5, atol=1e-4)
    return backend_model


@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_an_augmentation_is_left_out_and_noted(kind: str) -> None:
    x = keras.Input(IMAGES.shape[1:])
    layer = AUGMENTATIONS[kind]()
    graph = agrees(keras.Model(x, layer(x) * 2.0), IMAGES).graph
    assert [node.op for node in graph.nodes] == ["Mul"]
    assert any(type(layer).__name__ in note and "training only" in note for note in graph.notes)


@pytest.mark.parametrize("kind", COMPOSED)
def test_augmentations_inside_other_things(kind: str) -> None:
    x = keras.Input(IMAGES.shape[1:])
    y = L.Conv2D(4, 3, activation="relu")(COMPOSED[kind](x))
    agrees(keras.Model(x, L.Dense(2)(L.Flatten()(y))), IMAGES)


@pytest.mark.parametrize("kind", DETERMINISTIC)
def test_a_layer_that_acts_in_inference_is_kept(kind: str) -> None:
    x = keras.Input(IMAGES.shape[1:])
    agrees(keras.Model(x, L.Conv2D(2, 2)(DETERMINISTIC[kind]()(x))), IMAGES)


def test_images_of_bytes() -> None:
    x = keras.Input(IMAGES.shape[1:], dtype="uint8")
    y = L.Conv2D(2, 3)(L.Rescaling(1 / 255)(L.RandomFlip()(L.RandomContrast(0.2)(L.CenterCrop(8, 8)(x)))))
    agrees(keras.Model(x, y), IMAGES.astype(np.uint8))


def test_numbers_become_classes() -> None:
    x = keras.Input((4,))
    bins = L.Discretization(bin_boundaries=[0.0, 1.0, 2.0])(x)
    rows = np.random.default_rng(0).normal(1, 1, (6, 4)).astype(np.float32)
    agrees(keras.Model(x, L.Dense(2)(L.Embedding(4, 3)(bins))), rows)
    ids = keras.Input((4,), dtype="int64")
    known = L.IntegerLookup(vocabulary=[3, 5, 7])(ids)
    agrees(keras.Model(ids, L.Dense(2)(L.Embedding(4, 3)(known))), np.array([[3, 5, 7, 9], [1, 3, 3, 5]]))
    hashed = L.Hashing(5)(ids)
    agrees(keras.Model(ids, L.Dense(2)(L.Embedding(5, 3)(hashed))), np.array([[3, 5, 7, 9], [1, 3, 3, 5]]))
    hot = L.CategoryEncoding(5, output_mode="multi_hot")(ids)
    agrees(keras.Model(ids, L.Dense(2)(hot)), np.array([[3, 1, 2, 4], [1, 3, 3, 0]]))


def test_sound_becomes_a_spectrogram() -> None:
    x = keras.Input((800,))
    y = L.MelSpectrogram(fft_length=128, sequence_stride=64, sampling_rate=8000, num_mel_bins=16)(x)
    sound = np.random.default_rng(0).normal(size=(2, 800)).astype(np.float32)
    agrees(keras.Model(x, L.Dense(2)(y)), sound)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras saves so
def test_a_model_file_with_augmentations_is_quantized_and_exported(tmp_path) -> None:
    x = keras.Input(IMAGES.shape[1:])
    y = keras.Sequential([L.RandomFlip(), L.RandomRotation(0.1)])(x)
    y = L.Conv2D(4, 3, activation="relu")(L.Rescaling(1 / 255)(L.Resizing(8, 8)(L.RandomCrop(12, 10)(y))))
    model = keras.Model(x, L.Dense(2, name="head")(L.Flatten()(y)))
    model.save(tmp_path / "model.keras")
    sim = isobit.quantize(tmp_path / "model.keras", IMAGES, progress=False)
    np.testing.assert_allclose(sim.run_float(IMAGES)["head"], model.predict(IMAGES, verbose=0), rtol=1e-4, atol=1e-5)
    sim.save(tmp_path / "sim.isobit")
    loaded = isobit.load(tmp_path / "sim.isobit", tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.run(IMAGES)["head"], sim.run(IMAGES)["head"])
    assert sim.export(tmp_path / "out")["model"].exists()
