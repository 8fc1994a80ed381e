"""Modules and inputs of other types than float32. The module itself, in float32, is the reference."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import isobit


def _vision() -> tuple[nn.Module, tuple[int, ...]]:
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.SiLU(), nn.Flatten(), nn.Linear(96, 5)]
    return nn.Sequential(*layers), (3, 6, 6)


def _encoder() -> tuple[nn.Module, tuple[int, ...]]:
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (5, 8)


def _mixed() -> tuple[nn.Module, tuple[int, ...]]:
    """The norm alone stays in float32, as training in 16 bits keeps it."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.last = nn.Linear(7, 8), nn.LayerNorm(8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.norm(self.first(x).to(self.norm.weight.dtype))
            return self.last(y.to(self.last.weight.dtype))

    return Mixed(), (7,)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("make", [_vision, _encoder, _mixed])
def test_other_precisions_are_quantized_in_float32(make: object, dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, shape = make()
    module = module.to(dtype).eval()
    if make is _mixed:
        module.norm.float()
    data = [torch.randn(4, *shape, dtype=dtype) for _ in range(2)]
    sim = isobit.quantize(module, data, progress=False)
    assert len(list(sim.plan.of_kind("weight"))) >= 2
    expected = copy.deepcopy(module).float()(data[0].float()).detach().numpy()
    np.testing.assert_allclose(sim.run_float(data[0])["output"], expected, rtol=1e-3, atol=1e-4)
    assert any("computes in float32" in note for note in sim.graph.notes)
    assert next(module.parameters()).dtype == dtype
    assert sim.export(tmp_path)["model"].exists()


class Converted(nn.Module):
    """Integers made float by a method of the name that a module has too."""

    def __init__(self, convert: object) -> None:
        super().__init__()
        self.convert, self.out = convert, nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.convert(x) / 255)


@pytest.mark.parametrize(
    "convert", [lambda x: x.float(), lambda x: x.to(torch.float32), lambda x: x.type(torch.float32)]
)
@pytest.mark.parametrize("target", ["default", "onnxruntime-cpu"])
def test_bytes_are_inputs(convert: object, target: str) -> None:
    torch.manual_seed(1)
    module = Converted(convert).eval()
    data = [torch.randint(0, 256, (4, 12), dtype=torch.uint8) for _ in range(2)]
    sim = isobit.quantize(module, data, target=target, progress=False)
    np.testing.assert_allclose(sim.run_float(data[0])["output"], module(data[0]).detach().numpy(), rtol=1e-4, atol=1e-5)
    assert len(list(sim.plan.of_kind("weight"))) == 1
