"""Functions that a module holds (hooks, lambdas, a patched forward) mean the parts of the copy that is opened."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import lru_cache, partial
from types import MethodType, SimpleNamespace
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
    last.forward = lambda x: forward(x) + forward(x) + first.bias.sum()  # type: ignore[method-assign]
    return module


def given_a_method() -> nn.Module:
    """The usual way to patch one instance."""
    module = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    forward = module[2].forward
    module[2].forward = MethodType(lambda self, x: forward(x) + forward(x), module[2])  # type: ignore[method-assign]
    return module


NAMED: dict[str, nn.Module] = {}


def by_a_global_name() -> nn.Module:
    """As in scripts and notebooks, where the model is a global name."""
    module = NAMED["model"] = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    module[2].forward = lambda x: nn.functional.linear(x, NAMED["model"][2].weight, NAMED["model"][2].bias)  # type: ignore[index, method-assign]
    return module


class Held(nn.Module):
    """A function that is held in some way, or that has the layer in some way."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(8, 16), nn.Linear(16, 3)
        self.held = getattr(self, f"by_{way}")()

    def by_partial(self) -> Any:
        return partial(lambda x, negative: -self.layer(x) if negative else x, negative=True)

    def by_list(self) -> Any:
        return [lambda x: self.layer(x)]

    def by_tuple(self) -> Any:
        return (lambda x: self.layer(x),)

    def by_default(self) -> Any:
        return lambda x, part=self.layer: part(x)

    def by_keyword(self) -> Any:
        def function(x: Tensor, *, part: nn.Module = self.layer) -> Any:
            return part(x)

        return function

    def by_closed_list(self) -> Any:
        parts = [self.layer]
        return lambda x: parts[0](x)

    def by_attribute(self) -> Any:
        def function(x: Tensor) -> Any:
            return function.part(x)  # type: ignore[attr-defined]

        function.part = self.layer  # type: ignore[attr-defined]
        return function

    def by_object(self) -> Any:
        around = SimpleNamespace(module=self)
        return lambda x: around.module.layer(x)

    def by_weak_reference(self) -> Any:
        around = weakref.ref(self)
        return lambda x: around().layer(x)  # type: ignore[union-attr]

    def by_cache(self) -> Any:
        return lru_cache(None)(lambda x: self.layer(x))

    def by_turns(self) -> Any:
        """Functions that call each other, and share a name that one of them writes."""
        calls = 0

        def even(x: Tensor, left: int) -> Any:
            nonlocal calls
            calls = 1
            return self.layer(x) if left == 0 else odd(x, left - 1)

        def odd(x: Tensor, left: int) -> Any:
            return even(x, left - calls)

        return lambda x: even(x, 2)

    def by_many_wraps(self) -> Any:
        """Each has the one before twice around it."""

        def wrapped(inner: Any) -> Any:
            same = inner
            return lambda x: inner(x) if x.dim() else same(x)

        function: Any = self.layer.forward
        for _ in range(30):
            function = wrapped(function)
        return function

    def forward(self, x: Tensor) -> Tensor:
        function = self.held[0] if isinstance(self.held, list | tuple) else self.held
        y: Tensor = self.last(function(x))
        return y


WAYS = [name.removeprefix("by_") for name in vars(Held) if name.startswith("by_")]
HELD: list[Any] = [pytest.param(partial(Held, way), id=way) for way in WAYS]


@pytest.mark.parametrize("make", [Lambda, Features, patched, given_a_method, by_a_global_name, *HELD])
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
    assert {info.source or name for name, info in sim.graph.weights.items()} <= set(before)

    model = sim.trainable().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(data[0]).square().mean().backward()
    optimizer.step()
    for name, value in module.named_parameters():
        assert torch.equal(value, before[name]), name
        assert not torch.equal(model.get_parameter(name), before[name]), name
