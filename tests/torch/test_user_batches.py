"""Batches as users' loops have them: with labels, nested, of one sample. The module itself is the reference."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import isobit
from isobit.errors import DataError, ModelError


class Pair(nn.Module):
    """Two inputs that cannot be mistaken for each other."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 5), nn.Linear(3, 5)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.left(left) - self.right(right))


@dataclass
class Sample:
    right: torch.Tensor
    left: torch.Tensor
    weight: float = 1.0


Row = namedtuple("Row", "right left name")
LEFT, RIGHT, LABEL = torch.randn(4, 6), torch.randn(4, 3), torch.arange(4)
NAMES = ["a.png", "b.png", "c.png", "d.png"]


@pytest.mark.parametrize(
    "batch",
    [
        {"label": LABEL, "right": RIGHT, "left": LEFT},
        {"right": RIGHT, "left": LEFT, "names": NAMES},
        ({"right": RIGHT, "left": LEFT}, {"boxes": LABEL, "names": NAMES}),
        ([LEFT, RIGHT], LABEL),
        ((LEFT, RIGHT), {"label": LABEL}),
        (LEFT, RIGHT, LABEL, NAMES),
        Sample(RIGHT, LEFT),
    ],
    ids=["label", "names", "dicts", "list", "target", "flat", "dataclass"],
)
def test_labels_and_paths_are_left_out_and_said_once(batch: object, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Pair().eval()
    sim = isobit.quantize(module, [batch, batch, batch], progress=False)
    expected = module(LEFT, RIGHT).detach().numpy()
    np.testing.assert_allclose(sim.run_float(batch)["output"], expected, rtol=1e-5, atol=1e-6)
    said = [note for note in sim.report.notes if "does not read" in note or "elements; the first" in note]
    assert len(said) == 1
    sim.save(tmp_path / "sim.isobit")
    loaded = isobit.load(tmp_path / "sim.isobit", module)  # by an example like the one above
    np.testing.assert_array_equal(loaded.run(batch)["output"], sim.run(batch)["output"])
    loaded.save(tmp_path / "again.isobit")
    assert isobit.load(tmp_path / "again.isobit", module).calibration == sim.calibration


def test_inputs_pick_the_example_too() -> None:
    module = Pair().eval()
    data = [{"id": NAMES, "x": [RIGHT, LEFT]}] * 2
    sim = isobit.quantize(module, data, inputs=lambda batch: (batch["x"][1], batch["x"][0]), progress=False)
    assert sim.graph.inputs == ("left", "right")


class Pyramid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.near, self.far = nn.Conv2d(2, 4, 1), nn.Conv2d(3, 4, 1)

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        return self.near(maps[0]).mean((2, 3)) + self.far(maps[1]).mean((2, 3))


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.gate = nn.GRUCell(4, 6), nn.Linear(4, 6)

    def forward(self, x: torch.Tensor, memory: tuple[torch.Tensor, dict[str, torch.Tensor]]) -> torch.Tensor:
        return self.cell(x, memory[0]) * torch.sigmoid(self.gate(memory[1]["gate"]))


class Fields(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.age, self.site = nn.Linear(2, 4), nn.Linear(5, 4)

    def forward(self, row: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.relu(self.age(row["age"]) + self.site(row["site"]))


NESTED = {
    "list": (Pyramid, lambda: ([torch.randn(4, 2, 6, 6), torch.randn(4, 3, 3, 3)],)),
    "tuple and dict": (Gated, lambda: (torch.randn(4, 4), (torch.randn(4, 6), {"gate": torch.randn(4, 4)}))),
    "one dict": (Fields, lambda: ({"age": torch.randn(4, 2), "site": torch.randn(4, 5)},)),
}


@pytest.mark.parametrize("kind", NESTED)
def test_arguments_may_be_nested(kind: str) -> None:
    torch.manual_seed(1)
    make, batch = NESTED[kind]
    module = make().eval()
    data = [batch() for _ in range(2)]
    sim = isobit.quantize(module, data, progress=False)
    fresh = batch()
    found = next(iter(sim.run_float(fresh).values()))
    np.testing.assert_allclose(found, module(*fresh).detach().numpy(), rtol=1e-4, atol=1e-5)
    assert sim.model(*fresh).shape == found.shape


def test_keys_lead_and_not_the_order_of_a_dict() -> None:
    torch.manual_seed(2)
    module = Fields().eval()
    age, site = torch.randn(4, 2), torch.randn(4, 5)
    sim = isobit.quantize(module, [({"age": age, "site": site}, LABEL)] * 2, progress=False)
    found = sim.run_float(({"site": site, "age": age}, LABEL))["output"]
    np.testing.assert_allclose(found, module({"age": age, "site": site}).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_what_a_nested_batch_lacks_is_named() -> None:
    sim = isobit.quantize(Fields().eval(), [NESTED["one dict"][1]()], progress=False)
    with pytest.raises(DataError, match="row_site"):
        sim.run_float({"age": torch.randn(4, 2)})


class Carried(nn.Module):
    """A GRU whose state has the batch on axis 1."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.GRU(5, 7, batch_first=True), nn.Linear(7, 3)

    def forward(self, x: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        return self.out(self.rnn(x, state)[0])


class Unbatched(nn.Module):
    """One image, without a batch, in grey."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(1, 4, 3), nn.Linear(4, 2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.out(self.conv(image).mean((1, 2)))


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.conv(image))


ONES = {
    "carried": (Carried, lambda: (torch.randn(1, 4, 5), torch.randn(1, 1, 7))),
    "unbatched": (Unbatched, lambda: (torch.randn(1, 9, 9),)),
    "plain": (Plain, lambda: (torch.randn(1, 2, 6, 6),)),
}


@pytest.mark.parametrize("kind", ONES)
def test_batches_of_one_run_as_given(kind: str) -> None:
    torch.manual_seed(3)
    make, batch = ONES[kind]
    module = make().eval()
    sim = isobit.quantize(module, [batch() for _ in range(3)], progress=False)
    fresh = batch()
    found = sim.run_float(fresh)["output"]
    np.testing.assert_allclose(found, module(*fresh).detach().numpy(), rtol=1e-4, atol=1e-5)
    if kind == "plain":
        assert sim.graph.tensors["image"].shape[0] == "batch"
    else:
        assert any("the batch size is fixed" in note for note in sim.graph.notes)


class KeepsShape(nn.Module):
    """Something is made anew for a new shape, and the shape is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.shape = nn.Conv2d(3, 4, 3, 2, 1), None

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        y = self.conv(image)
        if self.shape != y.shape:
            self.shape = y.shape
        return y.reshape(self.shape[0], 4, -1).softmax(1)


class KeepsSize(nn.Module):
    """The number of samples of the first call is remembered as a number."""

    def __init__(self) -> None:
        super().__init__()
        self.out, self.size = nn.Linear(6, 4), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.size != len(x):
            self.size = len(x)
        return self.out(x).sum(0, keepdim=True).div(self.size) + self.out(x)


class KeepsGrid(nn.Module):
    """A grid is kept as a tensor for the last batch."""

    def __init__(self) -> None:
        super().__init__()
        self.out, self.grid = nn.Linear(4, 4), None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.grid is None or self.grid.shape[0] != x.shape[0]:
            self.grid = torch.ones(x.shape[0], 1) * 0.5
        return self.out(x) + self.grid


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(("make", "shape"), [(KeepsShape, (3, 8, 8)), (KeepsSize, (6,)), (KeepsGrid, (4,))])
def test_a_batch_size_that_is_kept_is_right_or_refused(
    make: type[nn.Module], shape: tuple[int, ...], count: int
) -> None:
    torch.manual_seed(4)
    module = make().eval()
    sim = isobit.quantize(module, [torch.rand(count, *shape) for _ in range(2)], progress=False)
    for size in (count, 5, 2):
        x = torch.rand(size, *shape)
        expected = module(x).detach().numpy()
        try:
            found = sim.run_float(x)["output"]
        except DataError:
            assert size != count
            continue
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


class OfSample(nn.Module):
    """Takes the user's own class, which a file does not hold."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair()

    def forward(self, sample: Sample) -> torch.Tensor:
        return self.pair(sample.left, sample.right)


def test_an_example_that_no_file_holds_is_asked_for(tmp_path: Path) -> None:
    module, batch = OfSample().eval(), (Sample(RIGHT, LEFT),)
    sim = isobit.quantize(module, [batch], progress=False)
    sim.save(tmp_path / "sim.isobit")
    with pytest.raises(ModelError, match="pass example_inputs"):
        isobit.load(tmp_path / "sim.isobit", module)
    loaded = isobit.load(tmp_path / "sim.isobit", module, batch)
    np.testing.assert_array_equal(loaded.run(batch)["output"], sim.run(batch)["output"])
