"""Layers whose settings follow a size of the data: files hold numbers there, so the size is fixed, and that is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import isobit


class Modulated(nn.Module):
    """A kernel for each sample, as groups of one convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.style = nn.Parameter(torch.randn(4, 2, 3, 3)), nn.Linear(3, 2)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        kernel = self.kernel[None] * self.style(style)[:, None, :, None, None]
        b, _, h, w = x.shape
        y = functional.conv2d(x.reshape(1, -1, h, w), kernel.reshape(-1, 2, 3, 3), padding=1, groups=b)
        return y.reshape(b, 4, h, w)


class Correlation(nn.Module):
    """Each channel of a template slides over that of its own image."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(2, 3, 1)

    def forward(self, image: Tensor, template: Tensor) -> Tensor:
        x, kernel = self.features(image), self.features(template)
        b, c = x.shape[:2]
        y = functional.conv2d(
            x.reshape(1, b * c, *x.shape[2:]), kernel.reshape(b * c, 1, *kernel.shape[2:]), groups=b * c
        )
        return y.reshape(b, c, *y.shape[2:])


class Longest(nn.Module):
    """A window as long as the sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.filters = nn.Embedding(20, 4), nn.Conv1d(4, 3, 3)

    def forward(self, ids: Tensor) -> Tensor:
        y = torch.relu(self.filters(self.words(ids).transpose(1, 2)))
        return functional.max_pool1d(y, y.shape[2]).squeeze(2)


IMAGE = (3, 2, 6, 6)
KINDS = {
    "modulated": (Modulated, lambda: (torch.randn(IMAGE), torch.randn(3, 3))),
    "correlation": (Correlation, lambda: (torch.randn(IMAGE), torch.randn(3, 2, 4, 4))),
    "longest": (Longest, lambda: (torch.randint(0, 20, (3, 7)),)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_are_fixed_and_the_file_is_written(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make, batch = KINDS[kind]
    module, x = make().eval(), batch()
    sim = isobit.QuantSim(module, x)
    sim.calibrate([x], progress=False)
    np.testing.assert_allclose(sim.run_float(x)["output"], module(*x).detach().numpy(), rtol=1e-4, atol=1e-5)
    assert any("the model's code" in note for note in sim.graph.notes)
    if kind == "correlation":
        assert onnxruntime.InferenceSession(str(sim.export(tmp_path)["model"])).get_inputs()[0].shape == list(IMAGE)


class Table(nn.Module):
    """A table of positions that is made once: longer sequences read the wrong ones, or none."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.length = nn.Embedding(20, 4), 0

    def forward(self, ids: Tensor) -> Tensor:
        if ids.shape[1] != self.length:
            self.length = ids.shape[1]
            self.shift = torch.arange(4.0) * self.length
        return torch.relu(self.words(ids) + self.shift)


class Averaged(nn.Module):
    """The mean of the sequence by a window as long as it."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 4)

    def forward(self, ids: Tensor) -> Tensor:
        words = self.words(ids)
        return functional.avg_pool2d(words, (words.size(1), 1))


@pytest.mark.parametrize("make", [Longest, Table, Averaged])
def test_no_other_length_gives_other_values_in_silence(make: type[nn.Module]) -> None:
    torch.manual_seed(0)
    module = make().eval()
    sim = isobit.QuantSim(module, torch.randint(0, 20, (3, 7)))
    for length in (7, 9, 14):
        ids = torch.randint(0, 20, (4, length))
        try:
            found = sim.run_float(ids)["output"]
        except isobit.errors.DataError:
            assert length != 7
            continue
        np.testing.assert_allclose(found, module(ids).detach().numpy(), rtol=1e-4, atol=1e-5)
