"""Fourier transforms inside a module: it opens, and its file computes what the module does, in onnxruntime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import isobit

Front = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Net(nn.Module):
    """A front end that maps (batch, samples) to (batch, features), and a small head."""

    def __init__(self, front: Front, window: int, features: int) -> None:
        super().__init__()
        self.front, self.layer, self.head = front, nn.Linear(features, 8), nn.Linear(8, 3)
        self.register_buffer("window", torch.hann_window(window))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.layer(self.front(x, self.window))))


def stft(x: torch.Tensor, window: torch.Tensor, **settings: Any) -> torch.Tensor:
    return torch.stft(x, 16, 8, window=window, return_complex=True, **settings)


def back(x: torch.Tensor, window: torch.Tensor, **settings: Any) -> torch.Tensor:
    """To the spectrum, half of it, and to samples again."""
    keys = ("center", "normalized", "win_length")
    spectrum = stft(x, window, **{key: settings[key] for key in keys if key in settings})
    return torch.istft(0.5 * spectrum, 16, 8, window=window, **settings)


def rotated(x: torch.Tensor, window: torch.Tensor) -> torch.Tensor:
    """Rotary embeddings as LLaMA's first code has them."""
    pairs = torch.view_as_complex(x.reshape(-1, 32, 2))
    return torch.view_as_real(pairs * torch.polar(window[2:3], window[3:4])).flatten(1)


FRONTS: dict[str, tuple[Front, int]] = {
    "magnitude": (lambda x, w: stft(x, w).abs().mean(-1), 16),
    "power": (lambda x, w: stft(x, w, center=False, normalized=True).abs().pow(2).mean(-1), 16),
    "logarithm": (lambda x, w: torch.log(torch.view_as_real(stft(x, w)).square().sum(-1) + 1).mean(-1), 16),
    "shorter window": (lambda x, w: stft(x, w, win_length=12, pad_mode="constant").abs().mean(-1), 12),
    "real": (lambda x, w: torch.fft.rfft(x[:, :16], norm="ortho").abs(), 16),
    "mixing": (lambda x, w: torch.fft.fft(torch.fft.fft(x.reshape(-1, 8, 8)), dim=-2).real.mean(1), 16),
    "filter": (lambda x, w: torch.fft.irfft(torch.fft.rfft(x) * torch.fft.rfft(w, n=64)), 16),
    "rotation": (rotated, 16),
    "inverse": (lambda x, w: back(x, w, length=64), 16),
    "inverse, normalised": (lambda x, w: back(x, w, normalized=True), 16),
    "inverse, shorter window": (lambda x, w: back(x, w, win_length=12, length=60), 12),
    "phase": (lambda x, w: torch.fft.rfft(x[:, :16]).angle(), 16),
    "phase of frames": (lambda x, w: stft(x, w, center=False).angle().mean(-1), 16),
    "angle of two, zeros among them": (lambda x, w: torch.atan2(torch.relu(x[:, :16]), x[:, 16:32]), 16),
}  # fmt: skip


@pytest.mark.parametrize("kind", FRONTS)
def test_the_file_computes_what_the_module_does(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    front, window = FRONTS[kind]
    features = front(torch.randn(2, 64), torch.hann_window(window)).shape[-1]
    module = Net(front, window, features).eval()
    data = torch.randn(4, 64)
    sim = isobit.quantize(module, [data], progress=False, method="minmax")
    x = data[:3]
    expected = module(x).detach().numpy()
    np.testing.assert_allclose(sim.run_float(x)["output"], expected, rtol=1e-4, atol=1e-5)
    assert len(list(sim.plan.of_kind("weight"))) >= 2

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    path = str(sim.export(tmp_path)["model"])
    found = onnxruntime.InferenceSession(path, options).run(None, {"x": x.numpy()})[0]
    step = float(np.abs(expected).max()) / 128
    np.testing.assert_allclose(found, sim.run(x)["output"], atol=2.1 * step)
    assert np.square(found - expected).mean() < 0.1 * np.square(expected).mean()


def test_one_signal_without_a_batch() -> None:
    module = Net(lambda x, w: back(x[0], w, length=64).reshape(1, -1), 16, 64).eval()
    x = torch.randn(1, 64)
    sim = isobit.quantize(module, [x], progress=False, method="minmax")
    np.testing.assert_allclose(sim.run_float(x)["output"], module(x).detach().numpy(), rtol=1e-4, atol=1e-5)
