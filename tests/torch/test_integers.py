"""The exported file holds and computes the simulator's integers, quantizer by quantizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import isobit
from isobit.graph import Weight

pytest.importorskip("onnxruntime")
from executed import Comparison, Executed


class Squeezed(nn.Module):
    """An inverted residual with squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.Hardswish())
        self.expand = nn.Sequential(nn.Conv2d(8, 24, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU6())
        self.depthwise = nn.Sequential(nn.Conv2d(24, 24, 3, padding=1, groups=24), nn.SiLU())
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(24, 6, 1), nn.ReLU(), nn.Conv2d(6, 24, 1))
        self.project = nn.Conv2d(24, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.depthwise(self.expand(x))
        x = x + self.project(y * self.gate(y).sigmoid())
        return self.head(x.mean((2, 3)))


class Decoder(nn.Module):
    """One block of a language model: RMS norms, rotary positions, grouped queries, SwiGLU, tied head."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 32)
        self.norms = nn.ModuleList(nn.RMSNorm(32, eps=1e-6) for _ in range(3))
        self.query, self.key, self.value = nn.Linear(32, 32), nn.Linear(32, 16), nn.Linear(32, 16)
        self.out, self.gate, self.up, self.down = (
            nn.Linear(32, 32), nn.Linear(32, 64), nn.Linear(32, 64), nn.Linear(64, 32),
        )  # fmt: skip
        self.register_buffer("frequencies", 1.0 / 100 ** (torch.arange(0, 8, 2) / 8))

    def _turned(self, x: Tensor) -> Tensor:
        angles = torch.arange(x.shape[-2])[:, None].float() * self.frequencies[None]
        left, right = x.chunk(2, -1)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([left * cos - right * sin, right * cos + left * sin], -1)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.table(ids)
        y = self.norms[0](x)
        q, k, v = (layer(y).unflatten(-1, (-1, 8)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        allowed = mask[:, None, None, :].bool() & torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
        y = functional.scaled_dot_product_attention(self._turned(q), self._turned(k), v, allowed, enable_gqa=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        y = self.norms[1](x)
        x = x + self.down(functional.silu(self.gate(y)) * self.up(y))
        return functional.linear(self.norms[2](x), self.table.weight)


def images(seed: int) -> dict[str, Tensor]:
    return {"x": torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(seed))}


def texts(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(4, 9, dtype=torch.int64)
    mask[1, 6:] = 0
    return {"ids": torch.randint(0, 50, (4, 9), generator=generator), "mask": mask}


@pytest.mark.parametrize(("module", "batch"), [(Squeezed, images), (Decoder, texts)])
def test_integers_of_simulator_and_file(module: type[nn.Module], batch, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = module()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
    sim = isobit.QuantSim(model.eval(), batch(0))
    sim.apply(isobit.techniques.FoldBatchNorms())
    sim.calibrate([batch(seed) for seed in range(4)], progress=False)
    executed, comparison = Executed(sim, tmp_path), Comparison()
    for seed in (10, 11):
        feeds = {name: tensor.numpy() for name, tensor in batch(seed).items()}
        comparison += executed.compare(feeds)
        (plain,), (simulated,), (result,) = (
            list(run(feeds).values()) for run in (sim.run_float, sim.run, executed.run)
        )
        assert np.square(simulated - result).sum() * 100 <= np.square(plain - simulated).sum()
    assert comparison.quantizers == sum(p.kind == "activation" and p.simulated for p in sim.plan.placements.values())
    assert comparison.share >= 0.999
    assert comparison.largest <= 1
    count, unequal = executed.unequal_constants()
    stored = [p for p in sim.plan.placements.values() if p.kind in ("weight", "bias") and isinstance(p.site, Weight)]
    assert count >= len(stored) > 9
    assert unequal == []


def test_a_decoder_has_rms_norms_and_no_quantizer_inside_them() -> None:
    """Means of squares span the square of the signal's range: on 8 bits small ones would be lost."""
    sim = isobit.QuantSim(Decoder().eval(), texts(0))
    assert sim.graph.notes == ()
    assert sum(node.op == "RMSNormalization" for node in sim.graph.nodes) == 3
    assert not any(node.op in ("Sqrt", "Reciprocal", "Pow") for node in sim.graph.nodes)


def test_truths_are_counted_as_integers() -> None:
    """A sum along an axis of booleans is of integers, as positions behind a mask of attention are."""

    class Counted(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x) * ((x > 0).cumsum(-1) + 1)

    module, x = Counted().eval(), torch.randn(8, 4)
    sim = isobit.quantize(module, [x], recipe="basic", progress=False)
    assert "CumSum" in [node.op for node in sim.graph.nodes]
    with torch.no_grad():
        expected = module(x).numpy()
    assert np.abs(sim.run(x.numpy())["output"] - expected).max() < 0.05 * np.abs(expected).max()
