"""Front ends of audio inside a module: quiet parts are looked at as much as loud ones, however they are written."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

import isobit

Real = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
FRAME, HOP, BANDS = 64, 32, 12
BINS = FRAME // 2 + 1

#: Magnitudes of real and imaginary parts, (batch, bins, frames) each.
MAGNITUDES: dict[str, Real] = {
    "root": lambda re, im: (re.square() + im.square()).sqrt(),
    "complex": lambda re, im: torch.complex(re, im).abs(),
    "viewed as complex": lambda re, im: torch.view_as_complex(torch.stack([re, im], -1)).abs(),
    "moved as complex": lambda re, im: (
        torch.view_as_complex(torch.stack([re, im], -1)).permute(2, 0, -2).transpose(0, -2).mT.abs()
    ),
    "hypot": torch.hypot,
    "norm": lambda re, im: torch.stack([re, im], -1).norm(dim=-1),
    "vector norm": lambda re, im: torch.linalg.vector_norm(torch.stack([re, im]), dim=0),
}
LOGARITHMS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "log": torch.log,
    "log10": torch.log10,
    "decibels": lambda x: x.log10().mul(20),
    "log2": torch.log2,
    "log1p": lambda x: torch.log1p(1e3 * x),
}


def bands() -> torch.Tensor:
    """(bins, bands)."""
    centres = torch.linspace(0, BINS - 1, BANDS)
    return (1 - (torch.arange(BINS)[:, None] - centres).abs() / 3).clamp(min=0)


class ByConvolution(nn.Module):
    """Frames by a convolution with cosines and sines."""

    def __init__(self, magnitude: Real, logarithm: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.magnitude, self.logarithm = magnitude, logarithm
        phase = 2 * np.pi * torch.arange(BINS)[:, None] * torch.arange(FRAME) / FRAME
        self.filters = nn.Conv1d(1, 2 * BINS, FRAME, stride=HOP, bias=False)
        self.filters.weight.data = torch.cat([phase.cos(), -phase.sin()])[:, None] * torch.hann_window(FRAME)
        self.register_buffer("bands", bands())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        re, im = self.filters(x[:, None]).split(BINS, 1)
        mel = self.magnitude(re, im).transpose(1, 2) @ self.bands
        return self.logarithm(mel.clamp(min=1e-5))


class AsWhisper(nn.Module):
    """torch.stft, powers, bands from the left, decimal logarithm, at most 8 decades."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(FRAME))
        self.register_buffer("bands", bands().T.contiguous())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        power = torch.stft(x, FRAME, HOP, window=self.window, return_complex=True)[..., :-1].abs() ** 2
        level = (self.bands @ power).clamp(min=1e-10).log10()
        return (torch.maximum(level, level.amax((1, 2), keepdim=True) - 8.0) + 4.0) / 4.0


def tones(seed: int) -> torch.Tensor:
    """Loud tones that become quiet, down to a thousandth."""
    rng, time = np.random.default_rng(seed), np.arange(2048)
    wave = np.sin(rng.uniform(0.1, 2.5, (16, 1)) * time) + 0.1 * rng.standard_normal((16, 2048))
    return torch.tensor(wave * 10.0 ** (-3 * time / 2048), dtype=torch.float32)


def decibels(module: nn.Module) -> float:
    sim = isobit.quantize(module.eval(), tones(0), progress=False)
    with torch.no_grad():
        exact = module(tones(1)).numpy()
    rounded = sim.run(tones(1))["output"]
    np.testing.assert_allclose(sim.run_float(tones(1))["output"], exact, rtol=1e-4, atol=1e-4)
    return float(10 * np.log10(np.var(exact) / np.mean((rounded - exact) ** 2)))


@pytest.mark.parametrize("kind", MAGNITUDES)
def test_magnitudes(kind: str) -> None:
    assert decibels(ByConvolution(MAGNITUDES[kind], torch.log)) > 40


@pytest.mark.parametrize("kind", LOGARITHMS)
def test_logarithms(kind: str) -> None:
    assert decibels(ByConvolution(MAGNITUDES["root"], LOGARITHMS[kind])) > 40


def test_a_transform_of_frames_and_bands_on_the_left() -> None:
    assert decibels(AsWhisper()) > 40


SILENT: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "complex": lambda y: torch.complex(y, 2 * y).abs(),
    "viewed as complex": lambda y: torch.view_as_complex(torch.stack([y, 2 * y], -1)).abs(),
    "distances": lambda y: torch.cdist(y, y),
    "many distances": lambda y: torch.cdist(y.repeat(1, 8, 1), y.repeat(1, 8, 1)),
}


class Behind(nn.Module):
    def __init__(self, operation: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.layer, self.operation = nn.Linear(8, 8, bias=False), operation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.operation(self.layer(x))


@pytest.mark.parametrize("kind", SILENT)
def test_gradients_at_silence_are_numbers(kind: str) -> None:
    """A root of squares has none at 0, and torch's magnitudes and distances have 0 there."""
    torch.manual_seed(0)
    module, x = Behind(SILENT[kind]).eval(), torch.randn(4, 6, 8)
    x[1] = 0
    module(x).sum().backward()
    assert module.layer.weight.grad is not None
    assert module.layer.weight.grad.isfinite().all()
    sim = isobit.QuantSim(module, x)
    sim.calibrate([x], "minmax", progress=False)
    model = sim.trainable().train()
    model(x).sum().backward()
    gradient = model.get_parameter("layer.weight").grad
    assert gradient is not None
    assert gradient.isfinite().all()
    assert gradient.any()


def test_logarithms_of_integers() -> None:
    module, x = Behind(lambda y: y + torch.log2(y.detach().long().abs() + 1)).eval(), torch.randn(4, 6, 8)
    sim = isobit.QuantSim(module, x)
    np.testing.assert_allclose(sim.run_float(x)["output"], module(x).detach(), rtol=1e-5, atol=1e-5)
