"""Edits reach the reader that they name alone, and new values of layers leave the program as it is."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from isobit.backend import CheckedModel
from isobit.edits import Insert, NewNode, SetWeights
from isobit.encodings import Encoding, QuantSpec
from isobit.graph import Input, Tensor, Weight
from isobit.statistics import MinMax, Request
from isobit_torch.backend import TorchBackend
from isobit_torch.model import TorchModel
from isobit_torch.translate.translate import translate


class Branches(nn.Module):
    """One tensor, read through a dropout, through a view, and as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.dropout = nn.LayerNorm(8), nn.Dropout(0.1)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.dropout(self.norm(x))
        return self.first(h) + self.second(h) + h


def test_an_input_behind_a_dropout() -> None:
    torch.manual_seed(0)
    module = Branches().eval()
    x = torch.randn(3, 5, 8)
    model = CheckedModel.of(TorchBackend().open(module, (x,)))
    factors = np.linspace(0.5, 2.0, 8).astype(np.float32)
    model.edit([Insert(Input("first", 0), (NewNode("Mul", ("factors",)),), {"factors": factors})])
    name = model.graph.inputs[0]
    with torch.no_grad():
        h = module.norm(x)
        expected = module.first(h * torch.from_numpy(factors)) + module.second(h) + h
    (output,) = model.run({name: x.numpy()}).values()
    np.testing.assert_allclose(output, expected.numpy(), rtol=1e-5, atol=1e-5)
    assert sum(node.op == "Mul" for node in model.graph.nodes) == 1


def test_new_weights_of_layers_leave_the_program_and_other_copies_as_they_are() -> None:
    torch.manual_seed(0)
    model = CheckedModel.of(TorchBackend().open(Branches().eval(), (torch.randn(3, 5, 8),)))
    model.set_quantizers({Weight("first.weight"): Encoding(QuantSpec.parse("int8 per-tensor"), 0.01, 0)})
    (name,) = model.graph.inputs
    batch = {name: np.random.default_rng(0).standard_normal((3, 5, 8)).astype(np.float32)}
    before, copy = next(iter(model.run(batch).values())), model.copy()
    assert isinstance(copy.inner, TorchModel)
    program = copy.inner.program
    copy.edit([SetWeights({"first.weight": -copy.weight("first.weight"), "first.bias": np.full(8, 2.0)})])
    assert copy.inner.program is program
    fresh = translate(program.graph, copy.native, program.inputs, program.signature.outputs, program.notes).graph
    assert [repr(node) for node in copy.graph.nodes] == [repr(node) for node in fresh.nodes]
    assert copy.graph.tensors == fresh.tensors
    assert {n: (w.shape, w.magnitude) for n, w in copy.graph.weights.items()} == {
        n: (w.shape, w.magnitude) for n, w in fresh.weights.items()
    }
    np.testing.assert_array_equal(copy.weight("first.bias"), np.full(8, 2.0, np.float32))
    np.testing.assert_array_equal(copy.weight("first.weight"), -model.weight("first.weight"))
    assert copy.encodings() == model.encodings()
    assert np.abs(next(iter(copy.run(batch).values())) - before).max() > 0.1
    np.testing.assert_array_equal(next(iter(model.run(batch).values())), before)


class Two(nn.Module):
    """Two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


def test_observation_ends_with_the_last_tensor_that_is_watched() -> None:
    model = TorchBackend().open(Two().eval(), (torch.randn(3, 8),))
    site = Tensor("second")
    model.set_quantizers({site: Encoding(QuantSpec.parse("int8 per-tensor"), 0.01, 0)})
    runs: list[Tensor] = []
    model._quantizer(site).register_forward_hook(lambda *_: runs.append(site))
    batch = {model.graph.inputs[0]: np.ones((3, 8), np.float32)}
    bounds = MinMax()
    model.observe([batch], [Request(Tensor("first"), bounds)])
    assert not runs
    last = MinMax()
    model.observe([batch], [Request(Tensor("first"), bounds), Request(site, last, "after")])
    assert len(runs) == 1
    (output,) = model.run(batch).values()
    np.testing.assert_array_equal(last.bounds(), [[output.min(), output.max()]])
