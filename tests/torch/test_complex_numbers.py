"""Complex numbers inside a module: what is done to them is done to their parts, in the simulator and in the file."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import isobit

WIDTH, STEPS = 16, 6


class Complex(nn.Module):
    """A complex number out of two layers, and what `use` makes of it and of the input."""

    def __init__(self, use: Callable[[Complex, torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.use = use
        self.real, self.imaginary = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        angles = torch.linspace(0, 3, STEPS * WIDTH // 2).reshape(STEPS, -1)
        self.register_buffer("turns", torch.polar(torch.ones_like(angles), angles))
        parts = torch.linspace(-1, 1, 2 * WIDTH * 4).reshape(2, WIDTH, 4)
        self.weight = nn.Parameter(torch.complex(parts[0], parts[1].flip(0)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.use(self, torch.complex(self.real(x), self.imaginary(x)), x)


def rotated(m: Complex, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Positions as Llama's first code has them."""
    pairs = torch.view_as_complex(m.real(x).reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * m.turns).flatten(2)


def fourier_operator(m: Complex, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Learned weights for the lowest frequencies, the others 0."""
    spectrum = torch.fft.rfft(x, dim=1)
    kept = torch.zeros(len(x), spectrum.shape[1], 4, dtype=torch.cfloat)
    kept[:, :3] = torch.einsum("btc,cd->btd", spectrum[:, :3], m.weight)
    return torch.fft.irfft(kept, n=STEPS, dim=1)


def masked_spectrum(m: Complex, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    window = torch.hann_window(32)
    spectrum = torch.stft(x.flatten(1), 32, 16, window=window, return_complex=True)
    return torch.istft(spectrum * torch.sigmoid(spectrum.abs()), 32, 16, window=window, length=STEPS * WIDTH)


def halves(m: Complex, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    left, right = z.chunk(2, -1)
    return (left * right).abs()


USES: dict[str, Callable[[Complex, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "reshaped": lambda m, z, x: z.reshape(z.shape[0], STEPS, 4, 4).flatten(-2).unflatten(-1, (2, 8)).abs(),
    "sliced": lambda m, z, x: z[:, 1:5].unsqueeze(1).squeeze(1).narrow(-1, 2, 4).abs(),
    "selected and stacked": lambda m, z, x: torch.stack([z[:, 0], z[:, 1]], 1).abs(),
    "joined": lambda m, z, x: torch.cat([z.flip(1), z.roll(1, 1), z.roll(3)], -1).abs(),
    "moved": lambda m, z, x: z.permute(2, 0, -2).transpose(0, -2).mT.abs(),
    "spread": lambda m, z, x: z.unsqueeze(2).expand(-1, -1, 3, -1).abs().mean(2),
    "taken apart": lambda m, z, x: z.unbind(1)[0].abs() + z.split([4, 12], -1)[1].sum(1).sum(-1, keepdim=True).abs(),
    "halves": halves,
    "power by the conjugate": lambda m, z, x: (z * z.conj()).real,
    "by a real mask": lambda m, z, x: torch.view_as_real(torch.sigmoid(x) * z)[..., 0],
    "over its size": lambda m, z, x: (z / (z.abs() + 1)).imag,
    "quotient": lambda m, z, x: (z / (torch.complex(x, x.flip(-1)) + 3)).imag,
    "reciprocal": lambda m, z, x: (1.0 / (z + 5)).real,
    "squared": lambda m, z, x: (z.square() + (z - 1) ** 2).real,
    "by numbers": lambda m, z, x: (z * 1j + (2 - 3j) * z - z / 3 - 1j + 2 - z.conj()).real,
    "beside a real one": lambda m, z, x: (z + x).abs() + (x - z).abs(),
    "mean": lambda m, z, x: torch.view_as_real(z.mean(1)).flatten(1) + z.sum().abs(),
    "exponential": lambda m, z, x: torch.exp(-z * 0.1).imag,
    "polar": lambda m, z, x: torch.polar(z.abs(), x).real,
    "phase": lambda m, z, x: z[:, 1:].angle(),
    "matrix": lambda m, z, x: (z @ m.weight).abs(),
    "einsum": lambda m, z, x: torch.einsum("btc,cd->btd", z, m.weight).real,
    "chosen": lambda m, z, x: torch.where(z.abs() > 1, z, 0).abs(),
    "chosen beside a real one": lambda m, z, x: torch.where(x > 0, z, x + 1).imag,
    "masked": lambda m, z, x: z.masked_fill(x > 0, 1 - 2j).real,
    "gathered": lambda m, z, x: torch.gather(z, -1, torch.tensor([0, 3, 5]).expand(len(x), STEPS, -1)).abs(),
    "cast": lambda m, z, x: (z.to(torch.cdouble) * x.to(torch.cdouble)).to(torch.cfloat).imag,
    "sign": lambda m, z, x: torch.view_as_real(torch.sgn(z * (x > 0))).flatten(2),
    "rotated": rotated,
    "parts of a transform": lambda m, z, x: torch.view_as_real(torch.fft.rfft(x)).square().sum(-1),
    "transform and back": lambda m, z, x: torch.fft.irfft(0.5 * torch.fft.rfft(m.real(x), dim=-1), n=WIDTH),
    "Fourier operator": fourier_operator,
    "masked spectrum": masked_spectrum,
}


#: What may be left of complex numbers: phases read them whole.
_WHOLE = {"aten::angle", "aten::view_as_complex"}


def batches(count: int) -> list[torch.Tensor]:
    rng = np.random.default_rng(0)
    return [torch.tensor(rng.standard_normal((4, STEPS, WIDTH)), dtype=torch.float32) for _ in range(count)]


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_the_opened_model_is_the_module(use: Callable[..., torch.Tensor]) -> None:
    module, (batch,) = Complex(use).eval(), batches(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sim = isobit.QuantSim(module, example_inputs=(batch,))
    with torch.no_grad():
        np.testing.assert_allclose(
            next(iter(sim.run_float(batch).values())), module(batch).numpy(), rtol=1e-4, atol=1e-5
        )
    if not any("fft" in node.op or "stft" in node.op for node in sim.graph.nodes):  # a transform is one operation
        assert {node.op for node in sim.graph.nodes if node.op.startswith("aten::")} <= _WHOLE


@pytest.mark.parametrize(
    "name",
    [
        "chosen",
        "masked",
        "gathered",
        "sign",
        "joined",
        "by numbers",
        "matrix",
        "rotated",
        "Fourier operator",
        "transform and back",
    ],
)
def test_the_file_is_the_simulator_and_layers_are_integers(name: str, tmp_path: Path) -> None:
    module, data = Complex(USES[name]).eval(), batches(3)
    sim = isobit.quantize(module, data, progress=False)
    written = sim.export(tmp_path)
    assert written.checks[0].equal > 0.99
    assert sim.report.coverage.integer_weight_bytes == sim.report.coverage.weight_bytes > 0
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(str(written["model"]), options, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: data[0].numpy()})
    with torch.no_grad():
        expected = module(data[0]).numpy()
    noise = float(np.square(found - expected).mean() / np.square(expected).mean())
    assert 10 * math.log10(1 / noise) > 30
