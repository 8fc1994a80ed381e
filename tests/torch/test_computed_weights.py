"""Weights that layers compute from their parameters are weights. The module itself is the reference."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import isobit
from isobit.errors import CoverageWarning


class Standardized(nn.Conv2d):
    """Weight standardisation."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, deviation = self.weight.mean((1, 2, 3), keepdim=True), self.weight.std((1, 2, 3), keepdim=True)
        return functional.conv2d(x, (self.weight - mean) / (deviation + 1e-5), self.bias)


class Equalized(nn.Linear):
    """A learning rate that is equalised in forward."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.weight * 0.3, self.bias * 2)


class Packed(nn.Module):
    """Three projections in one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.packed = nn.Parameter(torch.randn(12, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.packed.chunk(3)
        return functional.linear(x, query) * torch.sigmoid(functional.linear(x, key)) + functional.linear(x, value)


class Masked(nn.Module):
    """A causal mask over the weight, and a product from the left."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6))
        self.register_buffer("mask", torch.ones(6, 6).tril())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.matmul(x, (self.weight * self.mask).t())


class Decoder(nn.Module):
    """Query and key differ: nn.MultiheadAttention splits its projection."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        return self.attention(x, memory, memory, need_weights=False)[0]


KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[tuple[int, ...], ...], int]] = {
    "standardised": (lambda: Standardized(3, 4, 3), ((3, 6, 6),), 1),
    "equalised": (lambda: Equalized(5, 4), ((5,),), 1),
    "packed": (Packed, ((4,),), 3),
    "masked": (Masked, ((6,),), 1),
    "cross attention": (Decoder, ((5, 8), (7, 8)), 4),
}


@pytest.mark.parametrize("kind", KINDS)
def test_computed_weights_are_quantized(kind: str) -> None:
    torch.manual_seed(0)
    make, shapes, count = KINDS[kind]
    module = make().eval()
    batch = tuple(torch.randn(4, *shape) for shape in shapes)
    sim = isobit.quantize(module, [batch], progress=False, method="minmax")
    assert len(list(sim.plan.of_kind("weight"))) >= count - (kind == "cross attention")
    found = sim.run_float(batch)["output"]
    np.testing.assert_allclose(found, module(*batch).detach().numpy(), rtol=1e-4, atol=1e-5)
    assert any("train before quantizing" in note for note in sim.graph.notes) or kind == "cross attention"


def test_a_table_that_a_layer_projects_stays_signal() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.key = nn.Parameter(torch.randn(7, 8)), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.key(self.table).t()

    with pytest.warns(CoverageWarning, match=r"key\.weight"):  # what constants alone make is not observed
        sim = isobit.quantize(Positions().eval(), [torch.randn(4, 8)], progress=False, method="minmax")
    assert "key.weight" in dict(sim.model.named_parameters())
