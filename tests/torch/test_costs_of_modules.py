"""Costs of the neutral graph are those that PyTorch counts."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from isobit.budget import Cost, layer_costs
from isobit.plugins import registry


def test_multiply_accumulates_and_parameters_are_those_of_pytorch() -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1)
            self.norm = torch.nn.BatchNorm2d(8)
            self.deep = torch.nn.Conv2d(8, 8, 3, groups=4, dilation=2)
            self.up = torch.nn.ConvTranspose2d(8, 4, 2, stride=2)
            self.tokens = torch.nn.Linear(4, 6)
            self.head = torch.nn.Linear(6, 5)

        def forward(self, x):
            x = torch.relu(self.up(self.deep(self.norm(self.stem(x)))))
            x = self.tokens(x.flatten(2).transpose(1, 2))
            x = torch.softmax(x @ x.transpose(1, 2), -1) @ x  # products of two activations
            return self.head(x.mean(1))

    module = Net().eval()
    batch = torch.randn(1, 3, 20, 18)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(batch)
    cost = Cost.sum(layer_costs(registry().open(module, (batch,)).graph).values())
    assert 2 * cost.macs == counter.get_total_flops()
    assert cost.parameters == sum(parameter.numel() for parameter in module.parameters())
