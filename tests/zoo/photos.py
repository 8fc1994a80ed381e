"""Pictures that scikit-image ships, as crops."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from zoo_network import shipped

WHEEL = "scikit-image==0.26.0"
NAMES = "astronaut.png chelsea.png coffee.png rocket.jpg hubble_deep_field.jpg ihc.png motorcycle_left.png retina.jpg"


@cache
def crops(seed: int, count: int, side: int, names: tuple[str, ...] = tuple(NAMES.split())) -> NDArray[np.uint8]:
    """Crops (count, side, side, 3) of various sizes, some mirrored, the pictures in turn."""
    rng = np.random.default_rng(seed)
    found = []
    for index in range(count):
        picture = Image.open(shipped(WHEEL, f"skimage/data/{names[index % len(names)]}")).convert("RGB")
        size = int(rng.uniform(0.6, 1.0) * min(picture.size))
        left, top = (int(rng.integers(0, extent - size + 1)) for extent in picture.size)
        crop = picture.crop((left, top, left + size, top + size)).resize((side, side), Image.Resampling.BICUBIC)
        pixels = np.asarray(crop)
        found.append(pixels[:, ::-1] if rng.random() < 0.5 else pixels)
    return np.stack(found)


@cache
def faces() -> NDArray[np.float32]:
    """100 faces (100, 25, 25), 0 to 1."""
    return np.load(shipped(WHEEL, "skimage/data/lfw_subset.npy"))[:100].astype(np.float32)
