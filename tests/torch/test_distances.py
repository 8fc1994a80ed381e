"""Distances of pairs of rows, running products, bilinear layers: what ONNX has no operation for, in others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import isobit
from isobit.graph import Weight


class Codebook(nn.Module):
    """The place of the nearest of some rows, and the distances."""

    def __init__(self, rows: int, mode: str = "use_mm_for_euclid_dist_if_necessary") -> None:
        super().__init__()
        self.layer, self.rows, self.mode = nn.Linear(6, 8), nn.Parameter(torch.randn(rows, 8)), mode

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        distances = torch.cdist(self.layer(x), self.rows, compute_mode=self.mode)
        return distances, distances.argmin(-1)


class Pairs(nn.Module):
    """Of two sequences of any length."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        return -torch.cdist(self.layer(x), self.layer(x[:, :4]))


class OfFirstNorm(Pairs):
    def forward(self, x: Tensor) -> Tensor:
        return -torch.cdist(self.layer(x), self.layer(x[:, :4]), p=1.0)


class Products(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = self.layer(x).sigmoid() + 0.5
        return y.cumprod(1), torch.cumprod(y, -1), y[:, :1].cumprod(1)


class Biaffine(nn.Module):
    """What one layer says of each pair of steps."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.layer, self.pairs = nn.Linear(6, 5), nn.Bilinear(6, 5, 3, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.pairs(x, self.layer(x))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Codebook(5),
        lambda: Codebook(40),
        lambda: Codebook(40, "donot_use_mm_for_euclid_dist"),
        lambda: Codebook(5, "use_mm_for_euclid_dist"),
        Pairs,
        OfFirstNorm,
        Products,
        lambda: Biaffine(True),
        lambda: Biaffine(False),
    ],
)
def test_the_file_computes_what_the_module_does(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, data = make().eval(), [torch.randn(4, 7, 6) for _ in range(2)]
    sim = isobit.QuantSim(module, data[0])
    sim.calibrate(data, "minmax", progress=False)
    assert not any("has no mapping" in note for note in sim.graph.notes)
    weights = {info.source or name for name, info in sim.graph.weights.items()}
    placed = {site.name for site in sim.plan.placements if isinstance(site, Weight)}
    assert "pairs.weight" not in weights or "pairs.weight" in placed
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(str(sim.export(tmp_path)["model"]), options)
    for batch in (data[0], torch.randn(3, 7, 6)):
        with torch.no_grad():
            wanted = module(batch)
        wanted = wanted if isinstance(wanted, tuple) else (wanted,)
        found = session.run(None, {"x": batch.numpy()})
        for value, result, (name, simulated) in zip(wanted, found, sim.run(batch).items(), strict=True):
            np.testing.assert_allclose(sim.run_float(batch)[name], value, rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(result, simulated, rtol=1e-4, atol=1e-4)
