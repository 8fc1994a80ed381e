"""Pooling that rounds the number of windows up: a file has none that begins in the padding behind, as in PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import isobit


class Gated(nn.Module):
    """A layer behind the pooling that two operations read, one of them by way of another."""

    def __init__(self, pool: nn.Module, layer: nn.Module) -> None:
        super().__init__()
        self.pool, self.layer = pool, layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.layer(self.pool(x))
        return found * torch.sigmoid(1.702 * found)


CASES = {
    "maximum": (nn.MaxPool2d(2, 2, 1, ceil_mode=True), nn.Conv2d(3, 4, 1), (2, 3, 6, 9)),
    "mean": (nn.AvgPool2d(2, 2, 1, ceil_mode=True), nn.Conv2d(3, 4, 1), (2, 3, 7, 9)),
    "mean of values alone": (
        nn.AvgPool2d(3, 4, 1, ceil_mode=True, count_include_pad=False), nn.Conv2d(3, 4, 1), (2, 3, 12, 16),
    ),
    "beyond the padding": (nn.MaxPool2d(2, 5, 1, ceil_mode=True), nn.Conv2d(3, 4, 1), (2, 3, 9, 19)),
    "of sequences": (nn.MaxPool1d(2, 2, 1, ceil_mode=True), nn.Conv1d(3, 4, 1), (2, 3, 9)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_file_has_the_windows_of_the_module(case: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    pool, layer, shape = CASES[case]
    x = torch.randn(shape)
    module = Gated(pool, layer).eval()
    sim = isobit.quantize(module, x, target="default", recipe="basic", method="minmax", progress=False)
    result = sim.export(tmp_path)
    session = onnxruntime.InferenceSession(result["model"], providers=["CPUExecutionProvider"])
    [found] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    expected = module(x).detach().numpy()
    assert found.shape == expected.shape
    assert np.square(found - expected).sum() < 0.01 * np.square(expected).sum()
    assert result.checks[0].equal > 0.99
