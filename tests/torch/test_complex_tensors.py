"""Modules that compute with complex numbers in between: what torch.onnx.export writes, isobit writes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import isobit

pytest.importorskip("onnxruntime")

READERS = {
    "abs": lambda z: z.abs(),
    "parts": lambda z: z.real.square() + z.imag.square(),  # two readers of one complex tensor
    "conjugate": lambda z: (z * z.conj()).real,
    "pairs": lambda z: torch.view_as_real(z).square().sum(-1),
    "back": lambda z: torch.fft.irfft(0.5 * z, n=64)[..., :33],
}


class Spectrum(nn.Module):
    def __init__(self, reader: str) -> None:
        super().__init__()
        self.reader, self.linear = reader, nn.Linear(33, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(READERS[self.reader](torch.fft.rfft(x, dim=-1)))


@pytest.mark.parametrize("reader", READERS)
def test_complex_tensors_are_exported(reader, tmp_path) -> None:
    torch.manual_seed(0)
    module, x = Spectrum(reader).eval(), torch.randn(6, 64)
    sim = isobit.quantize(module, [x], progress=False, method="minmax")
    (found,) = sim.run_float(x).values()
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), module(x), rtol=1e-4, atol=1e-4)
    result = sim.export(tmp_path)
    assert result.checks[0].equal > 0.9, str(result.checks[0])
    assert not any(check.error for check in result.checks)
