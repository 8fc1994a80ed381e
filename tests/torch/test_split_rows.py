"""Rows that are split by counts, as experts behind a sort are written. The module is the reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import isobit
from isobit.errors import ModelError


class Sorted(nn.Module):
    """As transformers has it in GraniteMoe and JetMoe."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(8, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, 8)
        weights, numbers = torch.topk(self.gate(rows).softmax(-1), 2)
        order = numbers.flatten().argsort()
        places = order.div(2, rounding_mode="trunc")
        found = self.joined(rows[places], numbers) * weights.flatten()[order, None]
        return torch.zeros_like(rows).index_add(0, places, found).reshape(x.shape)

    def joined(self, rows: Tensor, numbers: Tensor) -> Tensor:
        hits = torch.zeros(numbers.shape[0], 3, dtype=torch.int64).scatter(1, numbers, 1)
        parts = rows.split(hits.sum(0).tolist(), dim=0)
        return torch.cat([expert(part) for expert, part in zip(self.experts, parts, strict=True)], dim=0)


class SplitTwice(Sorted):
    """Layer by layer, each split anew, by numbers that are taken one by one."""

    def joined(self, rows: Tensor, numbers: Tensor) -> Tensor:
        counts = [count.item() for count in (numbers[..., None] == torch.arange(3)).sum((0, 1))]
        for layer in range(3):
            parts = torch.split(rows, counts)
            rows = torch.cat([expert[layer](part) for expert, part in zip(self.experts, parts, strict=True)])
        return rows


class Given(nn.Module):
    """Rows of several kinds one behind the other, and how many there are of each."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(8, 4) for _ in range(3))

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        parts = rows.split(counts.tolist())
        return self.joined([head(part) for head, part in zip(self.heads, parts, strict=True)])

    def joined(self, parts: list[Tensor]) -> Tensor:
        return torch.cat(parts)


def _rows(seed: int, batch: int = 4) -> tuple[Tensor, ...]:
    return (torch.randn(batch, 5, 8, generator=torch.Generator().manual_seed(seed)),)


def _kinds(seed: int, *counts: int) -> tuple[Tensor, ...]:
    rows = torch.randn(sum(counts or (3, 4, 5)), 8, generator=torch.Generator().manual_seed(seed))
    return rows, torch.tensor(counts or (3, 4, 5))


CASES = {Sorted: (_rows, (_rows(9, 7),)), SplitTwice: (_rows, (_rows(9, 7),)), Given: (_kinds, (_kinds(9, 0, 10, 2),))}


@pytest.mark.parametrize("kind", CASES)
def test_each_part_has_its_own_layers_also_with_other_counts(kind: type[nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, (draw, others) = kind().eval(), CASES[kind]
    sim = isobit.quantize(model, [draw(seed) for seed in range(3)], progress=False)
    assert sim.report.coverage.weights == 1
    assert any("for all rows" in note for note in sim.graph.notes)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(str(sim.export(tmp_path)["model"]), options)
    for batch in (draw(5), *others):
        (found,), (simulated,) = sim.run_float(batch).values(), sim.run(batch).values()
        np.testing.assert_allclose(found, model(*batch).detach().numpy(), rtol=1e-4, atol=1e-6)
        (executed,) = session.run(None, {n.name: x.numpy() for n, x in zip(session.get_inputs(), batch, strict=True)})
        np.testing.assert_allclose(executed, simulated, atol=1e-5 * np.abs(simulated).max())


#: Other ways to write it: parts of rows (count, 8) by counts (3), and parts (count, 4) together.
PARTS: dict[str, Callable[[Tensor, Tensor], Sequence[Tensor]]] = {
    "another name": lambda rows, counts: rows.split_with_sizes(counts.tolist()),
    "counts by place": lambda rows, counts: torch.split(rows, [counts[i].item() for i in (0, 1, -1)]),
    "a moved tensor, axis from behind": lambda rows, counts: rows.split(counts.cpu().tolist(), dim=-2),
}
TOGETHER: dict[str, Callable[[Sequence[Tensor]], Tensor]] = {
    "axis": lambda parts: torch.cat(list(parts), axis=0),
    "axis from behind": lambda parts: torch.concat(list(parts), dim=-2),
    "named arguments behind": lambda parts: torch.cat(list(parts)).reshape(-1, 2, 2).flatten(start_dim=1),
}


class Written(Given):
    """A way of each of the two."""

    def __init__(self, split: str, join: str) -> None:
        super().__init__()
        self.split, self.join = PARTS[split], TOGETHER[join]

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        return self.join([head(part) for head, part in zip(self.heads, self.split(rows, counts), strict=True)])


@pytest.mark.parametrize(("split", "join"), list(zip(PARTS, TOGETHER, strict=True)))
def test_it_does_not_matter_how_it_is_written(split: str, join: str) -> None:
    model = Written(split, join).eval()
    sim = isobit.QuantSim(model, _kinds(0))
    for batch in (_kinds(1), _kinds(2, 0, 10, 2), _kinds(3, 0, 0, 12)):
        (found,) = sim.run_float(batch).values()
        np.testing.assert_allclose(found, model(*batch).detach().numpy(), rtol=1e-4, atol=1e-6)


class Centred(Given):
    def joined(self, parts: list[Tensor]) -> Tensor:
        return torch.cat([part - part.sum(0) for part in parts])


class Reversed(Given):
    def joined(self, parts: list[Tensor]) -> Tensor:
        return torch.cat(parts[::-1])


class Left(Given):
    def joined(self, parts: list[Tensor]) -> Tensor:
        return torch.cat(parts[:2])


@pytest.mark.parametrize("kind", [Centred, Reversed, Left])
def test_parts_that_are_more_than_their_rows_are_refused(kind: type[nn.Module]) -> None:
    with pytest.raises(ModelError, match="takes a value out of a tensor"):
        isobit.QuantSim(kind().eval(), _kinds(0))
