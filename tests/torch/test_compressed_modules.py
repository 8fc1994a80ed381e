"""What `isobit.compress` returns of a module: fewer parameters, all of which train."""

from __future__ import annotations

import torch

import isobit


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
