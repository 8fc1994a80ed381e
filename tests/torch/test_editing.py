"""Edits before an input that is read through a dropout or a view reach that reader alone."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from isobit.edits import Insert, NewNode
from isobit.sites import Input
from isobit_torch.backend import TorchBackend


class Branches(nn.Module):
    """One tensor, read through a dropout, through a view, and as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.dropout = nn.LayerNorm(8), nn.Dropout(0.1)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.dropout(self.norm(x))
        return self.first(h) + self.second(h) + h


def test_an_input_behind_a_dropout() -> None:
    torch.manual_seed(0)
    module = Branches().eval()
    x = torch.randn(3, 5, 8)
    model = TorchBackend().open(module, (x,))
    factors = np.linspace(0.5, 2.0, 8).astype(np.float32)
    model.edit([Insert(Input("first", 0), (NewNode("Mul", ("factors",)),), {"factors": factors})])
    name = model.graph.inputs[0]
    with torch.no_grad():
        h = module.norm(x)
        expected = module.first(h * torch.from_numpy(factors)) + module.second(h) + h
    (found,) = model.run({name: x.numpy()}).values()
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-5)
    assert sum(node.op == "Mul" for node in model.graph.nodes) == 1
