"""Code that asks tensors for truths: the way of the example is kept, told, and held against every batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import isobit
from isobit.errors import DataError, ModelError


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(torch.relu(self.first(x)), x))

    def between(self, y: Tensor, x: Tensor) -> Tensor:
        raise NotImplementedError


class Assertion(Network):
    def between(self, y: Tensor, x: Tensor) -> Tensor:
        assert (x < 1.5).all()
        return y


class Raising(Network):
    def between(self, y: Tensor, x: Tensor) -> Tensor:
        if torch.isnan(x).any():
            raise ValueError("no numbers")
        return y / 2 if x.max() > 1.5 else y


class TruthOfAnItem(Network):
    def between(self, y: Tensor, x: Tensor) -> Tensor:
        is_large = (x > 1.5).any().item()
        return y.abs().sqrt() if is_large else y


class ScaledWhereLoud(Network):
    def between(self, y: Tensor, x: Tensor) -> Tensor:
        if (x.abs() > 1).any():  # a mask, but one that picks nothing
            y = y / x.abs().max()
        return y


class Comparison(Network):
    def between(self, y: Tensor, x: Tensor) -> Tensor:
        return y if torch.equal(x.clamp(max=1.5), x) else y - 1


class Loop(Network):
    def between(self, y: Tensor, x: Tensor) -> Tensor:
        while x.max() > 0.5:
            x, y = x - 0.5, y / 2
        return y


class AtTheEnd(Network):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y + 1 if y.isnan().any() or x.max() > 1.5 else y

    def between(self, y: Tensor, x: Tensor) -> Tensor:
        return y


class KnownBefore(Network):
    """One line asks for what is known without data, and then for what is not."""

    def between(self, y: Tensor, x: Tensor) -> Tensor:
        for truth in (torch.tensor(False), x.max() > 1.5):
            if truth:
                y = y + 1
        return y


KINDS = [Assertion, Raising, TruthOfAnItem, ScaledWhereLoud, Comparison, Loop, AtTheEnd, KnownBefore]


def batch(largest: float, count: int = 4) -> Tensor:
    x = torch.rand(count, 6)
    x[0, 0] = largest
    return x.clamp(max=largest)


@pytest.mark.parametrize("kind", KINDS)
def test_the_way_of_the_example_is_kept_and_others_are_refused(kind: type[Network]) -> None:
    torch.manual_seed(0)
    module = kind().eval()
    sim = isobit.QuantSim(module, batch(0.9))
    told = [note for note in sim.graph.notes if "the way that the example takes is kept" in note]
    assert told
    assert all("test_decided_branches.py:" in note for note in told)
    sim.calibrate([batch(0.9), batch(0.8, 2)], progress=False)
    other = batch(0.7, 3)
    np.testing.assert_allclose(sim.run_float(other)["output"], module(other).detach(), rtol=1e-5, atol=1e-6)
    before = sim.run(other)["output"]
    for use in (sim.run, lambda x: sim.calibrate([x], progress=False)):
        with pytest.raises(DataError, match=r"test_decided_branches\.py:\d+: `.*goes another way"):
            use(batch(2.0))
    np.testing.assert_array_equal(sim.run(other)["output"], before)


def test_what_is_known_without_data_needs_no_example() -> None:
    class Known(Network):
        def between(self, y: Tensor, x: Tensor) -> Tensor:
            steps = torch.arange(y.shape[1])
            return y * 2 if steps.sum() > 3 else y

    sim = isobit.QuantSim(Known().eval(), batch(0.9))
    assert not any("example takes" in note for note in sim.graph.notes)


def test_a_number_taken_out_of_a_tensor_is_still_refused() -> None:
    class Number(Network):
        def between(self, y: Tensor, x: Tensor) -> Tensor:
            return y / 2 if x.max().item() > 1.5 else y

    with pytest.raises(ModelError, match=r"x\.max\(\)\.item\(\) > 1\.5"):
        isobit.QuantSim(Number().eval(), batch(0.9))
