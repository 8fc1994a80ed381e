"""Functions that a module holds (hooks, lambdas, a patched forward) mean the parts of the copy that is opened."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import isobit


class Lambda(nn.Module):
    """A function with the module around it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 3)
        self.body = lambda x: torch.relu(self.first(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(x))


class Features(nn.Module):
    """Hooks that keep what layers make, as for features of several depths."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.kept = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), {}
        self.head = nn.Linear(16, 3)
        for part in (self.body[0], self.body[2]):
            part.register_forward_hook(self.keep(f"{id(part)}"))

    def keep(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self.kept[name] = output

        return hook

    def forward(self, x: Tensor) -> Tensor:
        self.body(x)
        return self.head(torch.cat(list(self.kept.values()), -1))


def patched() -> nn.Module:
    """A forward that was wrapped from outside, around the method of one part and the weights of another."""
    module = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    first, last = module[0], module[2]
    forward = last.forward
    last.forward = lambda x: 2 * forward(x) + first.bias.sum()  # type: ignore[method-assign]
    return module


@pytest.mark.parametrize("make", [Lambda, Features, patched])
def test_the_copy_has_its_own(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    module = make().eval()
    data = [torch.randn(6, 8) for _ in range(3)]
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    sim = isobit.QuantSim(module, data[0])
    sim.calibrate(data, "minmax", progress=False)
    for batch in (data[0], torch.randn(2, 8)):
        with torch.no_grad():
            np.testing.assert_allclose(sim.run_float(batch)["output"], module(batch), rtol=1e-5, atol=1e-6)
    layers = [node for node in sim.graph.nodes if node.op == "Linear"]
    assert all(f"{node.name}.weight" in before for node in layers)

    model = sim.trainable().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(data[0]).square().mean().backward()
    optimizer.step()
    for name, value in module.named_parameters():
        assert torch.equal(value, before[name]), name
        assert not torch.equal(model.get_parameter(name), before[name]), name
