"""Numbers that code keeps in tensors though no data is in them. The module is the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import isobit
from isobit.errors import ModelError


class DividedSize(nn.Module):
    """As Longformer has it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        count = torch.div(x.shape[1], 2, rounding_mode="trunc")
        return self.layer(x).view(x.shape[0], count, 2, 8).mean(2)


class StridesInBuffers(nn.Module):
    """As EnCodec has it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(8, 4, 5, stride=3)
        self.register_buffer("width", torch.tensor(5), persistent=False)
        self.register_buffer("stride", torch.tensor(3))

    def forward(self, x: Tensor) -> Tensor:
        count = torch.ceil((x.shape[-1] - self.width) / self.stride + 1).to(torch.int64) - 1
        missing = count * self.stride + self.width - x.shape[-1]
        if missing > 0:
            x = nn.functional.pad(x, (0, missing))
        return self.conv(x)


class StepsInABuffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.register_buffer("steps", torch.tensor([2, 3]))

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(int(self.steps.sum())):
            x = torch.relu(self.layer(x))
        if self.steps[0] == 2:
            x = x + 1
        return x / self.steps.max().item()


class RangeBetweenTensors(nn.Module):
    """As Funnel has it, in floats; and as Switch has it, a layer moved to the type that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1], dtype=x.dtype)
        offsets = torch.arange(places[-1] - places[0], places[0] - 1, -1)
        self.layer = self.layer.to(x.dtype)
        return self.layer(x) + offsets[:, None]


class SizesOneByOne(nn.Module):
    """Sizes of bands, as a list, by a loop and by names."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(size, 8) for size in (3, 5))
        self.register_buffer("sizes", torch.tensor([3, 5]))

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.sizes.unbind()
        x = torch.cat([x[..., second:], x[..., :second]], -1)
        for size in self.sizes:
            x = x * int(size)
        bands = x.split(self.sizes.tolist(), dim=-1)
        return first * self.layers[0](bands[0]) + self.layers[1](bands[1])


class BesideVmap(nn.Module):
    """As Mimi has it: padding from buffers, a mask by torch.vmap, and a number that is spread."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.register_buffer("kernel", torch.tensor(3))

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.pad(x, (0, 0, int(self.kernel) - 1, 0))[:, 2:]
        places = torch.arange(x.shape[1])
        mask = torch.vmap(lambda row: row.new_ones((), dtype=torch.bool) & (places <= row))(places)
        return self.layer(torch.matmul(mask.to(x.dtype), x)) + self.kernel.expand(8)


@pytest.mark.parametrize(
    "kind", [RangeBetweenTensors, DividedSize, StridesInBuffers, StepsInABuffer, SizesOneByOne, BesideVmap]
)
def test_numbers_without_data_are_known(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    sim = isobit.QuantSim(model, torch.randn(4, 8, 8))
    asked = [note for note in sim.graph.notes if "asks for the values of the buffers" in note]
    assert [name for name, _ in model.named_buffers() if any(repr(name) in note for note in asked)] == [
        name for name, _ in model.named_buffers()
    ]
    for batch in (4, 3):
        x = torch.randn(batch, 8, 8)
        found = next(iter(sim.run_float(x).values()))
        np.testing.assert_allclose(found, model(x).detach(), rtol=1e-4, atol=1e-6)


class Written(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x * int(self.asked(x) > 0))


class ThroughAView(Written):
    def asked(self, x: Tensor) -> Tensor:
        held = torch.zeros(4)
        held.view(-1)[0] = x.sum()
        return held[0]


class ThroughASlice(Written):
    def asked(self, x: Tensor) -> Tensor:
        held = torch.zeros(4)
        held[:2].copy_(x[0, :2])
        return held.sum()


class BesideAView(Written):
    def asked(self, x: Tensor) -> Tensor:
        held = torch.zeros(1)
        first = held[0]
        held += x.sum()
        return first


class AsOut(Written):
    def asked(self, x: Tensor) -> Tensor:
        held = torch.zeros(())
        torch.sum(x, (0, 1), out=held)
        return held


class ByChance(Written):
    def asked(self, x: Tensor) -> Tensor:
        return torch.zeros(1).normal_()


@pytest.mark.parametrize("kind", [ThroughAView, ThroughASlice, BesideAView, AsOut, ByChance])
def test_what_data_was_written_into_is_not_known(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    with pytest.raises(ModelError, match="depends on the values|a value out of a tensor"):
        isobit.QuantSim(kind().eval(), torch.rand(3, 4))
