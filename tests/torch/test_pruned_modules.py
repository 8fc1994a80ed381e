"""Channels that leave modules as people write them: what is left computes what the whole does with them at zero."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import isobit
from isobit.backend.checked_model import CheckedModel
from isobit.edits.edit import SetWeights
from isobit.techniques.context import TechniqueContext
from isobit.techniques.pruning.channel_groups import ChannelGroup, find_groups, input_slot
from isobit.techniques.pruning.prune_channels import PruneChannels


class SplitBranches(nn.Module):
    """Halves of one layer's channels that different layers read, as in CSP stages and ShuffleNet units."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch, self.out = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(12, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept, more = torch.relu(self.stem(x)).chunk(2, 1)
        return self.out(torch.cat([kept, more, more + self.branch(more)], 1))


class TransposedGroups(nn.Module):
    """Transposed convolutions in groups and depthwise, whose weights PyTorch stores by input channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.grouped = nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 12, 2, 2, groups=4)
        self.mixed, self.depthwise = nn.Conv2d(12, 6, 1), nn.ConvTranspose2d(6, 6, 3, 2, 1, groups=6)
        self.out = nn.Conv2d(6, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.elu(self.grouped(torch.relu(self.stem(x))))
        return self.out(self.depthwise(self.mixed(x)))


class FlatProjection(nn.Module):
    """Heads of one projection that is computed on (batch * positions, features), as in GPT-2."""

    def __init__(self) -> None:
        super().__init__()
        self.packed, self.out = nn.Linear(12, 24), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, positions, _ = x.shape
        packed = self.packed(x.view(-1, 12)).view(batch, positions, 24)
        heads = [part.view(batch, positions, 4, 2).transpose(1, 2) for part in packed.split(8, 2)]
        scores = torch.softmax(heads[0] @ heads[1].transpose(-1, -2), -1)
        return self.out((scores @ heads[2]).transpose(1, 2).reshape(batch, positions, 8))


class SizesInCalls(nn.Module):
    """Sizes with channels among them: images of a size that is said, and a gate that is spread."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        larger = functional.interpolate(self.first(x), size=(5, 5), mode="bilinear")
        gate = larger.mean((2, 3), keepdim=True).expand(-1, 8, 5, 5)
        return self.out(self.second(larger * torch.sigmoid(gate)))


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        (SplitBranches, (2, 3, 4, 4)),
        (TransposedGroups, (2, 3, 4, 4)),
        (FlatProjection, (2, 3, 12)),
        (SizesInCalls, (2, 3, 4, 4)),
    ],
)
def test_a_pruned_module_computes_what_it_would_with_zeros(kind: type[nn.Module], shape: tuple[int, ...]) -> None:
    """All groups at once, without data, so that no weight is solved again."""
    torch.manual_seed(0)
    module, x = kind().eval(), torch.randn(shape)
    model = isobit.QuantSim(module, x).simulation.model
    groups, _ = find_groups(model.graph)
    stays = {group.name: range(0, group.count, 2) for group in groups}
    expected = with_zeros(model, groups, stays).run({"x": x.numpy()})
    before = sum(model.weight(name).size for name in model.graph.weights)
    report = PruneChannels(1.0, {name: list(kept) for name, kept in stays.items()}).apply(TechniqueContext(model))
    assert len(report.changed) == len(groups) > 0
    assert sum(model.weight(name).size for name in model.graph.weights) < 0.8 * before
    for name, value in model.run({"x": x.numpy()}).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-5)


def test_a_budget_for_a_layer_whose_channels_make_two_groups() -> None:
    """The second group has a name that no layer has; patterns reach it by its layers."""
    torch.manual_seed(0)
    module, x = SplitBranches().eval(), torch.randn(8, 3, 4, 4)
    small = isobit.compress(module, [x], method="channel-pruning", keep=0.6, exclude="out*", trials=1, progress=False)
    assert any(":2" in name for name in (*small.report.left, *(layer.name for layer in small.report.layers)))


def with_zeros(model: CheckedModel, groups: list[ChannelGroup], stays: dict[str, range]) -> CheckedModel:
    """A copy in which nothing reads the channels that go; those of products of two tensors are zero themselves."""
    values: dict[str, np.ndarray] = {}
    for group in groups:
        gone = [number for number in range(group.count) if number not in stays[group.name]]
        slots = [input_slot(model.graph, model.graph.node(name)) for name in group.readers]
        if group.unmeasured:
            parts = [part for name in group.producers for part in model.graph.node(name).inputs[1:3]]
            slots = [slot for slot in group.numbers if slot.name in parts]
        for slot in slots:
            assert slot is not None
            value = values.setdefault(slot.name, model.weight(slot.name).copy())
            np.moveaxis(value, slot.axis, 0)[np.isin(group.numbers[slot], gone)] = 0
    copied = model.copy()
    copied.edit([SetWeights({name: value for name, value in values.items()})])
    return copied
