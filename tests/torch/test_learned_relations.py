"""Training scales keeps what the encodings of a plan owe each other: onnxruntime runs the exported file."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional

import isobit
from isobit.encodings import Encoding
from isobit.quantsim import QuantSim


class Branches(nn.Module):
    """A Concat ties two tensors to one grid."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 3, 1), nn.ConvTranspose2d(4, 3, 1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        return self.head(torch.cat([self.left(x), self.right(x)], 1).mean((2, 3)))


class Gated(nn.Module):
    """Sigmoid and softmax have ranges that are known beforehand; a reshape stands between tensor and reader."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.value, self.head = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed = torch.sigmoid(self.gate(x)) * torch.softmax(self.value(x), -1)
        return self.head(mixed.reshape(-1, 4)).reshape(-1, 6)


class Twice(nn.Module):
    """One bias, two readers with inputs of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(torch.relu(self.layer(x)))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, str]]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)), (6,), {}),
    "one scale a weight": (
        lambda: nn.Sequential(nn.Linear(6, 9), nn.Linear(9, 4)),
        (6,),
        {"weights": "int8 per-tensor"},
    ),
    "batch norm": (
        lambda: nn.Sequential(nn.Conv1d(3, 5, 3), nn.BatchNorm1d(5), nn.ReLU6(), nn.Conv1d(5, 2, 1)),
        (3, 9),
        {},
    ),
    "branches": (Branches, (3, 6, 6), {}),
    "gated": (Gated, (6,), {}),
    "twice": (Twice, (6,), {}),
}


def train(sim: QuantSim, x: torch.Tensor, steps: int = 8, rate: float = 5e-3) -> None:
    """Towards half of what it gives: every scale moves."""
    model = sim.trainable()
    with torch.no_grad():
        goal = 0.5 * model(x)
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        functional.mse_loss(model(x), goal).backward()
        optimizer.step()
    model.eval()


def off(sim: QuantSim) -> list[str]:
    """The sites whose encodings are not what the plan asks for."""
    wrong, encodings = [], sim.encodings
    for site, placement in sim.plan.placements.items():
        if placement.scale_of is not None:
            source, weight = (encodings[factor].scale for factor in placement.scale_of)
            wrong += [str(site)] if not np.array_equal(encodings[site].scale, source * weight) else []
    for name, members in sim.plan.groups().items():
        wrong += [name] if len({encodings[member.site].scale.tobytes() for member in members}) > 1 else []
    return wrong


@pytest.mark.parametrize("name", NETWORKS)
def test_the_runtime_computes_what_was_trained(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make, shape, formats = NETWORKS[name]
    x = torch.randn(16, *shape)
    sim = isobit.quantize(make().eval(), [x], target="default", progress=False, method="minmax", **formats)
    before = sim.encodings
    fixed = [p.site for p in sim.plan.placements.values() if p.fixed_range is not None]
    train(sim, x)
    assert off(sim) == []
    moved = [site for site in sim.plan.placements if sim.encodings[site] != before[site]]
    assert len(moved) > len(sim.plan.placements) / 2
    assert not set(fixed) & set(moved)
    assert bool(fixed) == (name == "gated")
    path = sim.export(tmp_path)["model"]
    simulated = sim.run(x)["output"]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.x64quantprecision", "1")  # sums of 16 bits saturate on some processors
    session = onnxruntime.InferenceSession(str(path), options)
    executed = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    noise = np.square(executed - simulated).mean()
    allowed = 1e-3 if name == "gated" else 1e-4  # a few roundings, in the kernels of softmax and sigmoid
    assert noise <= allowed * np.square(simulated).mean()


def test_tied_quantizers_learn_one_parameter() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 6, 6)
    sim = isobit.quantize(Branches().eval(), [x], target="default", progress=False, method="minmax")
    train(sim, x)
    names = [name for name, _ in sim.model.named_parameters() if "left.log" in name or "right.log" in name]
    assert len(names) == 1
    first, second = (sim.model.quantizers[name] for name in ("left", "right"))
    assert torch.equal(first.scale, second.scale)
    copied = copy.deepcopy(sim.model)
    before = first.scale.clone()
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.add_(0.1)
    assert torch.equal(copied.quantizers["left"].scale, copied.quantizers["right"].scale)
    assert not torch.equal(copied.quantizers["left"].scale, before)
    assert torch.equal(first.scale, before)
    sim.trainable("frozen")
    assert sim.quantizer_parameters() == []
    assert torch.equal(first.scale, before)


def test_trained_grids_are_saved_and_loaded() -> None:
    torch.manual_seed(0)
    x, module = torch.randn(16, 6), Twice().eval()
    sim = isobit.quantize(module, [x], progress=False, method="minmax")
    train(sim, x)
    expected, saved = sim.run(x)["output"], copy.deepcopy(sim.model.state_dict())
    np.testing.assert_array_equal(copy.deepcopy(sim.model)(x).detach().numpy(), expected)
    sim.trainable("frozen")
    np.testing.assert_array_equal(sim.run(x)["output"], expected)
    other = isobit.quantize(module, [x], progress=False, method="minmax")
    other.model.load_state_dict(saved)
    np.testing.assert_array_equal(other.run(x)["output"], expected)
    assert off(other) == []


def test_encodings_that_are_given_are_kept() -> None:
    """A bias grid from elsewhere is no product, and a weight alone that gets another scale leaves the bias as it is."""
    sim = isobit.quantize(nn.Sequential(nn.Linear(6, 4)).eval(), [torch.randn(8, 6)], progress=False, method="minmax")
    site = next(p.site for p in sim.plan.of_kind("bias"))
    weight = next(p.site for p in sim.plan.of_kind("weight"))
    before = sim.encodings
    other = Encoding(before[weight].spec, before[weight].scale * 2, before[weight].zero_point, before[weight].axis)
    sim.backend_model.set_quantizers({weight: other})
    assert sim.encodings[site] == before[site]
    sim.backend_model.set_quantizers({weight: before[weight]})
    train(sim, torch.randn(8, 6))
    assert off(sim) == []
