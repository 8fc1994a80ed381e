"""Modules that keep a tensor from one call to the next: the opened model starts where the given one stands."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import isobit
from isobit.errors import ModelError
from isobit_torch.capture.own_copy.held_tensors import held_tensors


class Spiking(nn.Module):
    """A potential that builds up."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out, self.potential = nn.Linear(6, 6), nn.Linear(6, 3), torch.zeros(1)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            self.potential = 0.9 * self.potential + self.inner(x)
            spike = (self.potential > 1).float()
            self.potential = self.potential - spike
        return self.out(spike + self.potential)


class Streaming(nn.Module):
    """The state of a cell, none at first."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out, self.state = nn.LSTMCell(6, 4), nn.Linear(4, 2), None

    def forward(self, x: Tensor) -> Tensor:
        if self.state is None:
            self.state = (x.new_zeros(x.shape[0], 4), x.new_zeros(x.shape[0], 4))
        self.state = self.cell(x, self.state)
        return self.out(self.state[0])


class Remembering(nn.Module):
    """Keys of the past in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.key, self.past = nn.Linear(6, 6), {}

    def forward(self, x: Tensor) -> Tensor:
        key = self.key(x)[:, None]
        self.past["key"] = torch.cat([self.past["key"], key], 1) if self.past else key
        return torch.relu(self.past["key"].sum(1))


class Caching(nn.Module):
    """A table for the last length, and features for a loss: both are the same in the next call."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.table, self.features = nn.Linear(6, 6), None, None

    def forward(self, x: Tensor) -> Tensor:
        if self.table is None or self.table.shape[0] != x.shape[1]:
            self.table = torch.arange(x.shape[1]) / 10
        self.features = torch.relu(self.inner(x + self.table))
        return self.features * 2


@pytest.mark.filterwarnings("ignore::isobit.errors.CoverageWarning")  # a state that is there is a constant
@pytest.mark.parametrize("kind", [Spiking, Streaming, Remembering, Caching])
@pytest.mark.parametrize("is_used", [False, True])
def test_the_opened_model_is_the_given_one(kind: type[nn.Module], is_used: bool) -> None:
    torch.manual_seed(0)
    module, x = kind().eval(), torch.randn(4, 6)
    if is_used:
        module(torch.randn(4, 6))
    sim = isobit.QuantSim(module, x)
    sim.calibrate([x], progress=False)  # compares with the module, and leaves it as it is
    said = [note for note in sim.graph.notes if "from one call to the next" in note]
    assert bool(said) == (kind is not Caching)
    expected = module(x).detach().numpy()
    for _ in range(2):
        np.testing.assert_allclose(sim.run_float(x)["output"], expected, rtol=1e-5, atol=1e-5)


def test_what_cannot_be_copied_is_shared() -> None:
    class Locked(nn.Module):
        def __init__(self, *things: object) -> None:
            super().__init__()
            self.inner, self.things = nn.Linear(6, 3), things

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.inner(x))

    x = torch.randn(4, 6)
    with open(__file__) as text:
        module = nn.Sequential(Locked(threading.Lock()), nn.Linear(3, 6), Locked([text], (n for n in range(3)))).eval()
        found = isobit.QuantSim(module, x).run_float(x)["output"]
    np.testing.assert_allclose(found, module(x).detach().numpy(), rtol=1e-5, atol=1e-6)


def test_containers_may_hold_themselves() -> None:
    first, second = torch.ones(2), torch.zeros(3)
    table: dict[str, object] = {"b": [first, (second,)], "a": 1.0}
    table["self"] = table
    rows: list[object] = [second, table]
    rows.append(rows)
    assert [id(tensor) for tensor in held_tensors(table)] == [id(first), id(second)]
    assert [id(tensor) for tensor in held_tensors(rows)] == [id(second), id(first), id(second)]


def test_a_module_with_such_a_container_is_refused_by_an_error_of_isobit() -> None:
    """torch.export walks it without end; a raw RecursionError came before that."""
    module = nn.Linear(4, 2)
    module.settings = {"factor": 2.0}  # type: ignore[assignment]
    module.settings["all"] = module.settings  # type: ignore[operator,index]
    with pytest.raises(ModelError, match="cannot be captured by torch.export"):
        isobit.QuantSim(module, example_inputs=torch.zeros(3, 4))
