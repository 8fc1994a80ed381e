"""What `isobit.compress` returns of a module: fewer parameters, all of which train."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

import isobit
from isobit.training import distillation_loss


def module() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.BatchNorm2d(16), torch.nn.ReLU(),
        torch.nn.Conv2d(16, 24, 3, padding=1), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
        torch.nn.Linear(24, 5),
    )  # fmt: skip


def test_the_smaller_module_trains_in_a_loop_of_the_user() -> None:
    original = module().eval()
    images = torch.randn(32, 3, 8, 8)
    small = isobit.compress(original, [images], keep=0.5, cost="parameters", trials=1)
    count = sum(parameter.numel() for parameter in small.model.parameters())
    assert count == small.report.after.parameters < 0.51 * sum(p.numel() for p in original.parameters())
    small.model.train()
    optimizer = torch.optim.SGD(small.model.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = torch.square(small.model(images) - original(images).detach()).mean()
        loss.backward()
        assert all(parameter.grad is not None for parameter in small.model.parameters())
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    sim = isobit.quantize(small.model.eval(), [images], recipe="basic", method="minmax")
    assert sim.backend_model.encodings()


class Squeezed(torch.nn.Module):
    """Views of numbers that count channels, behind a mean and a pooling: both are one operation with them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.Conv2d(16, 16, 3, padding=1)
        self.inner, self.outer = torch.nn.Conv2d(16, 8, 1), torch.nn.Conv2d(8, 16, 1)
        self.head = torch.nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(self.first(x).relu()).relu()
        x = x * self.outer(self.inner(x.mean((2, 3)).view(-1, 16, 1, 1)).relu()).sigmoid()
        return self.head(torch.nn.functional.adaptive_avg_pool2d(x, 1).view(-1, 16))


def test_views_behind_a_pooling_count_the_channels_that_are_left() -> None:
    torch.manual_seed(0)
    images = torch.randn(16, 3, 8, 8)
    small = isobit.compress(Squeezed().eval(), [images], method="channel-pruning", keep=0.5, trials=1)
    assert small.report.kept < 0.51
    assert small.model(images[:5]).shape == (5, 5)


def test_the_module_as_it_came_teaches_the_smaller_one() -> None:
    original = module().eval()
    images = torch.randn(32, 3, 8, 8)
    small = isobit.compress(original, [images], keep=0.4, trials=1)
    distill = small.distillation(temperature=2.0)
    expected = distillation_loss(small.model(images).detach().numpy(), original(images).detach().numpy(), 2.0)
    assert float(distill(small.model(images), images).detach()) == pytest.approx(expected, rel=1e-3)
    optimizer = torch.optim.Adam(small.model.parameters(), 1e-3)
    for _ in range(10):
        optimizer.zero_grad()
        distill(small.model(images), images).backward()
        optimizer.step()
    assert float(distill(small.model(images), images).detach()) < 0.8 * expected
    before, module_alone = weakref.ref(small.before), small.model
    del small
    gc.collect()
    assert before() is None  # the module holds nothing of the network as it came
    assert module_alone(images).shape == (32, 5)
