"""Rows that masks pick: mixtures of experts, as people write them, and valid positions. The module is the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import isobit
from isobit.errors import ModelError


class Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x)))


class Mixture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(8, 3)
        self.experts = nn.ModuleList(Expert() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, 8)
        return self.mixed(rows).reshape(x.shape)

    def chosen(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        weights, numbers = torch.topk(self.gate(rows).softmax(-1), 2)
        return weights / weights.sum(-1, keepdim=True), numbers


class VisitsThoseHit(Mixture):
    """As transformers has it in Mixtral, Qwen-MoE and OLMoE."""

    def mixed(self, rows: Tensor) -> Tensor:
        weights, numbers = self.chosen(rows)
        out = torch.zeros_like(rows)
        masks = F.one_hot(numbers, 3).permute(2, 1, 0)
        for number in torch.greater(masks.sum((-1, -2)), 0).nonzero():
            place, row = torch.where(masks[number].squeeze(0))
            picked = rows[None, row].reshape(-1, 8)
            out.index_add_(0, row, self.experts[number](picked) * weights[row, place, None])
        return out


class AddsToThoseThatChose(Mixture):
    """As Mistral's own code has it."""

    def mixed(self, rows: Tensor) -> Tensor:
        weights, numbers = self.chosen(rows)
        out = torch.zeros_like(rows)
        for number, expert in enumerate(self.experts):
            row, place = torch.where(numbers == number)
            out[row] += weights[row, place, None] * expert(rows[row])
        return out


class BestExpertAlone(Mixture):
    """As a switch layer: by a mask, and not at all where it is empty."""

    def mixed(self, rows: Tensor) -> Tensor:
        weight, best = self.gate(rows).softmax(-1).max(-1)
        out = torch.zeros_like(rows)
        for number, expert in enumerate(self.experts):
            mask = best == number
            if mask.any():
                out[mask] = expert(rows[mask]) * weight[mask].unsqueeze(-1)
        return out


class NumbersAsList(Mixture):
    def mixed(self, rows: Tensor) -> Tensor:
        weight, best = self.gate(rows).softmax(-1).max(-1)
        out = torch.zeros_like(rows)
        for number in torch.nonzero(F.one_hot(best, 3).sum(0), as_tuple=True)[0].tolist():
            out[best == number] = self.experts[number](rows[best == number])
        return out * weight[:, None]


class ChosenBySorting(Mixture):
    """As topk, by numbers of which the masks do not show how many there are; written without their places."""

    def mixed(self, rows: Tensor) -> Tensor:
        order = self.gate(rows).argsort(-1, descending=True)[:, :2]
        out = torch.zeros_like(rows)
        for number, expert in enumerate(self.experts):
            row, _ = torch.where(order == number)
            out[row] += expert(rows[row])
        return out


@pytest.mark.parametrize(
    "kind", [VisitsThoseHit, AddsToThoseThatChose, BestExpertAlone, NumbersAsList, ChosenBySorting]
)
def test_experts_are_opened_at_any_batch_size(kind: type[Mixture]) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    sim = isobit.QuantSim(model, torch.randn(3, 5, 8))
    assert any("all rows" in note for note in sim.graph.notes)
    for batch in (3, 7):
        x = torch.randn(batch, 5, 8)
        found = next(iter(sim.run_float(x).values()))
        np.testing.assert_allclose(found, model(x).detach(), rtol=1e-4, atol=1e-6)


class Valid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = Expert()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        out[mask] = self.part(x[mask])
        return out


class ValidByNumbers(Valid):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        out = x.clone()
        row, place = torch.where(mask)
        out[row, place] = out[row, place] + self.part(x[row, place])
        return out


class TwiceInARow(Valid):
    """Several places of one row, which a sum takes all."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        row, place = mask.nonzero(as_tuple=True)
        return torch.zeros(x.shape[0], 8).index_add_(0, row, self.part(x[row, place]))


@pytest.mark.parametrize("kind", [Valid, ValidByNumbers, TwiceInARow])
def test_valid_positions_are_computed_and_the_others_dropped(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    sim = isobit.QuantSim(model, (torch.randn(4, 6, 8), torch.ones(4, 6, dtype=torch.bool)))
    for share in (0.0, 0.4):
        batch = (torch.randn(3, 6, 8), torch.rand(3, 6) < share)
        found = next(iter(sim.run_float(batch).values()))
        np.testing.assert_allclose(found, model(*batch).detach(), rtol=1e-4, atol=1e-6)


def test_all_rows_are_quantized_and_written(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = [(torch.randn(4, 6, 8), torch.rand(4, 6) < 0.5)]
    sim = isobit.QuantSim(Valid().eval(), data[0])
    sim.calibrate(data, method="minmax", progress=False)
    assert sim.report.coverage.weights == 1
    assert sim.export(tmp_path).checks[0].equal == 1


class Mixed(Valid):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        picked = self.part(x[mask])
        out = torch.zeros_like(x)
        out[mask] = picked - picked.mean(0)
        return out


class Returned(Valid):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.part(x[mask])


class Averaged(Valid):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x - self.part(x[mask]).mean()


@pytest.mark.parametrize("kind", [Mixed, Returned, Averaged])
def test_rows_that_are_not_computed_each_by_itself_are_refused(kind: type[nn.Module]) -> None:
    """Also where the mask of the example picks all rows, so that nothing differs on it."""
    example = (torch.randn(4, 6, 8), torch.ones(4, 6, dtype=torch.bool))
    with pytest.raises(ModelError, match=r"size depends on values; keep the size: torch\.where"):
        isobit.QuantSim(kind().eval(), example)


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Linear(4, 4)


class FilledWithTheMean(Branches):
    def forward(self, x: Tensor) -> Tensor:
        x, bad = x.clone(), torch.isnan(x)
        x[bad] = x[~bad].mean()
        return self.part(x)


class CentredWhereLow(Branches):
    def forward(self, x: Tensor) -> Tensor:
        x, low = x.clone(), x[:, 0] < -50
        x[low] = x[low] - x[low].mean(0)
        return self.part(x)


class OtherwiseWhereNone(Branches):
    def forward(self, x: Tensor) -> Tensor:
        mask, out = x > -50, torch.zeros_like(x)
        out[mask] = x[mask] * 2
        return self.part(out) + 100 if x[mask].numel() == 0 else self.part(out)


class WrittenByAnother(Branches):
    """The two masks are equal on the example."""

    def forward(self, x: Tensor) -> Tensor:
        first, second = x[:, 0] > -50, x[:, 1] > -50
        out = torch.zeros_like(x)
        out[second] = self.part(x[first])
        return out


class ReadByAnother(WrittenByAnother):
    def forward(self, x: Tensor) -> Tensor:
        first, second = x[:, 0] > -50, x[:, 1] > -50
        out = x.clone()
        out[first] = self.part(x[first]) + x[second]
        return out


@pytest.mark.parametrize(
    "kind",
    [FilledWithTheMean, CentredWhereLow, OtherwiseWhereNone, WrittenByAnother, ReadByAnother],
)
def test_what_the_masks_of_the_example_do_not_show_is_refused(kind: type[nn.Module]) -> None:
    """Masks that pick nothing, or all, or the same on the example."""
    torch.manual_seed(1)
    with pytest.raises(ModelError):
        isobit.QuantSim(kind().eval(), torch.randn(3, 4) * 5)


class CleanedWhereNeeded(Branches):
    def forward(self, x: Tensor) -> Tensor:
        if torch.isnan(x).any():
            x = torch.nan_to_num(x)
        return self.part(x)


class MaskComputedTwice(Branches):
    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        out[x[:, 0] > 0] = self.part(x[x[:, 0] > 0])
        out[~(x[:, 0] > 0)] = x[~(x[:, 0] > 0)]
        return out


@pytest.mark.parametrize("kind", [CleanedWhereNeeded, MaskComputedTwice])
def test_masks_that_say_where_alone_are_opened(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    sim = isobit.QuantSim(model, torch.randn(5, 4))
    x = torch.randn(6, 4)
    found = next(iter(sim.run_float(x).values()))
    np.testing.assert_allclose(found, model(x).detach(), rtol=1e-4, atol=1e-6)
