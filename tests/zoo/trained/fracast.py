"""How a series goes on: fracast (PyTorch), with an FFT in it and one block at ten dilations."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from zoo_network import Batch, Run, ZooNetwork

WHEEL = "fracast==0.1.0"
CONTEXT, HORIZON, MEDIAN = 2048, 48, 4


def series(seed: int, count: int) -> tuple[Batch, NDArray[np.float32]]:
    """Series with one or two periods, a trend and noise, between 0 and 1, and how each goes on (count, 48)."""
    rng = np.random.default_rng(seed)
    time = np.arange(CONTEXT + HORIZON)
    rows = []
    for _ in range(count):
        row = rng.normal(0, 1e-3) * time + 0.15 * rng.standard_normal(len(time))
        for _ in range(rng.integers(1, 3)):
            period = int(rng.integers(8, 120))
            shape = rng.standard_normal(4) / np.arange(1, 5)
            phase = 2 * np.pi * (time % period) / period
            row = row + sum(a * np.sin((h + 1) * phase + h) for h, a in enumerate(shape))
        rows.append(row)
    values = np.stack(rows)
    low, high = values[:, :CONTEXT].min(1, keepdims=True), values[:, :CONTEXT].max(1, keepdims=True)
    values = ((values - low) / (high - low)).astype(np.float32)
    context = values[:, :CONTEXT]
    return {"values": context, "observed": np.ones(context.shape, bool)}, values[:, CONTEXT:]


@cache
def model() -> Any:
    import torch
    from fracast import FracastModel

    parts = FracastModel.from_pretrained()

    class Forecaster(torch.nn.Module):
        """Encoder and head in one, as the wheel's own `predict` calls them."""

        def __init__(self) -> None:
            super().__init__()
            self.core, self.head = parts.core, parts.head

        def forward(self, values: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
            x, valid = values[:, None], observed[:, None]
            hidden = self.core(x, valid, valid.to(torch.float32))
            return self.head.forward_horizon(hidden, last_obs=values[:, -1:], ctx=values, ctx_mask=observed)

    return Forecaster().eval()


def figure(run: Run) -> float:
    """Skill against repeating the last value, in percent: 100 (1 - error / its error), errors absolute."""
    batch, after = series(1, 64)
    found = np.concatenate([run({k: v[i : i + 8] for k, v in batch.items()})[0][..., MEDIAN] for i in range(0, 64, 8)])
    simple = np.abs(batch["values"][:, -1:] - after).mean()
    return 100 * float(1 - np.abs(found - after).mean() / simple)


NETWORKS = (
    ZooNetwork(
        name="fracast",
        wheel=WHEEL,
        file="fracast/weights/model.int8.safetensors",
        task="64 synthesised series 48 steps on, skill against the last value",
        model=model,
        data=lambda: [series(seed, 8)[0] for seed in range(10, 16)],
        held_out=lambda: series(2, 8)[0],
        figure=figure,
        settings={"ignore_non_finite": True},
    ),
)
