"""Layers that the user froze stay frozen, and so do the biases that folding gives them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import isobit


class Transfer(nn.Module):
    def __init__(self, layer: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = nn.Sequential(layer, norm, nn.ReLU()), nn.LazyLinear(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(x).flatten(1))


KINDS = {
    "conv": (lambda: nn.Conv2d(3, 6, 3, bias=False), lambda: nn.BatchNorm2d(6), (3, 6, 6)),
    "sequence": (lambda: nn.Conv1d(3, 6, 3, bias=False), lambda: nn.BatchNorm1d(6), (3, 8)),
    "linear": (lambda: nn.Linear(5, 6, bias=False), lambda: nn.BatchNorm1d(6), (5,)),
    "with a bias": (lambda: nn.Conv2d(3, 6, 3), lambda: nn.BatchNorm2d(6), (3, 6, 6)),
}


@pytest.mark.parametrize("is_frozen", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_folded_biases_are_frozen_with_their_layer(kind: str, is_frozen: bool) -> None:
    layer, norm, shape = KINDS[kind]
    module = Transfer(layer(), norm()).eval()
    module(torch.randn(2, *shape))
    module.backbone.requires_grad_(not is_frozen)
    sim = isobit.quantize(module, [torch.randn(4, *shape)], progress=False, method="minmax")
    trained = {name for name, parameter in sim.model.named_parameters() if parameter.requires_grad}
    assert {"head.weight", "head.bias"} <= trained
    assert any("backbone" in name for name in trained) == (not is_frozen)
    assert "backbone.0.bias" in dict(sim.model.named_parameters())
