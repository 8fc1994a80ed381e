"""Blocks whose weights are rounded together, in PyTorch."""

from __future__ import annotations

import re
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import nn

import isobit
from isobit.backend import Differentiable
from isobit.graph import Weight, between
from isobit.techniques import AdaRound, ReconstructBlocks


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.second(torch.relu(self.first(x))))


def test_near_the_best_of_all_roundings() -> None:
    """Eight weights of 2 bits in two layers: every rounding of them is tried, on the grids that were found."""
    torch.manual_seed(3)
    module = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1)).eval()
    x = torch.randn(256, 3)
    wanted = module(x).detach().numpy()
    sims = {}
    for technique in (AdaRound(sequential=True), ReconstructBlocks(steps=40, batch=64)):
        sim = isobit.QuantSim(module, x[:2], weights="int2 per-channel", activations=None)
        (report,) = sim.apply(technique, data=[x])
        sims[type(technique).__name__] = sim

    def error(weights: list[np.ndarray], biases: list[np.ndarray]) -> float:
        hidden = np.maximum(x.numpy() @ weights[0].T + biases[0], 0)
        return float(np.square(hidden @ weights[1].T + biases[1] - wanted).sum())

    sim = sims["ReconstructBlocks"]
    told = " ".join([*report.changed, *report.left.values()])
    match = re.search(r"error of the block (\S+) -> (\S+) of", told)
    assert match is not None, told
    assert float(match[2]) < 1.3 * float(match[1])  # what the descent found itself, kept or not
    ours = {name: [sim.backend_model.weight(f"{layer}.{name}") for layer in (0, 2)] for name in ("weight", "bias")}
    plain = sims["AdaRound"].backend_model
    rounded = error(*([plain.weight(f"{layer}.{name}") for layer in (0, 2)] for name in ("weight", "bias")))
    choices = []
    for layer in (0, 2):
        encoding = report.encodings[Weight(f"{layer}.weight")]
        weight = module[layer].weight.detach().numpy()
        scale = encoding.broadcast(weight.shape)[0]
        lower = np.clip(np.floor(weight / scale), -2, 0)
        choices.append([(lower + np.reshape(up, weight.shape)) * scale for up in product((0, 1), repeat=weight.size)])
    errors = sorted(error([first, second], ours["bias"]) for first in choices[0] for second in choices[1])
    found = error(ours["weight"], ours["bias"])
    assert found <= rounded * 1.02  # the samples that were held back decide, not all of these
    assert found <= errors[len(errors) // 50] * (1 + 1e-5), (found, errors[:8])


def test_blocks_of_a_network_are_found_and_improved() -> None:
    """Judged by the network's output on other data; weights are on the grids that the report freezes."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), Residual(), Residual(), nn.Flatten(), nn.Linear(144, 3)
    ).eval()
    x, other = torch.randn(48, 2, 6, 6), torch.randn(64, 2, 6, 6)
    errors: dict[str, float] = {}
    for technique in (AdaRound(sequential=True), ReconstructBlocks(steps=20, batch=16)):
        sim = isobit.QuantSim(module, x[:2], weights="int2 per-channel")
        (report,) = sim.apply(technique, data=[x])
        sim.calibrate([x])
        difference = sim.run(other.numpy())["output"] - sim.run_float(other.numpy())["output"]
        errors[type(technique).__name__] = float(np.square(difference).sum())
    told = " ".join([*report.changed, *report.left.values()])
    assert told.count("error of the block") >= 2
    assert "4 blocks, " in report.notes[-1]
    for site, encoding in report.encodings.items():
        weight = sim.backend_model.weight(str(site))
        np.testing.assert_allclose(encoding.fake_quantize(weight), weight, rtol=1e-6, atol=1e-7)
        assert sim.encodings[site] == encoding
    assert errors["ReconstructBlocks"] <= 1.05 * errors["AdaRound"]


def test_the_same_seed_gives_the_same_bits() -> None:
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2, bias=False)).eval()
    x = torch.randn(64, 6)

    def weights(seed: int) -> Any:
        sim = isobit.QuantSim(module, x[:2], weights="int3 per-channel")
        sim.apply(ReconstructBlocks(steps=5, seed=seed), data=[x])
        last = sim.graph.nodes[-1].inputs[2]  # a bias that was added
        assert last is not None
        return sim.backend_model.weight("0.weight"), sim.backend_model.weight(last)

    for one, two in zip(weights(0), weights(0), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_part_with_sizes_that_are_taken_outside_of_it() -> None:
    """Code that reshapes by the batch size of the model's input: the part takes it of what it is given."""

    class Reshaping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 6), nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.relu(self.first(x))
            return self.second(y.view(x.shape[0], 2, 3)).sum(1)

    module, x = Reshaping().eval(), torch.randn(8, 6)
    model = isobit.QuantSim(module, x).backend_model
    assert isinstance(model, Differentiable)
    graph = model.graph
    first = next(node for node in graph.nodes if node.op == "Relu").outputs[0]
    (last,) = graph.outputs.values()
    part = between(graph, [first], [last])
    hidden = torch.relu(module.first(x[:3])).detach()
    wanted = module(x[:3]).detach().numpy()
    name = next(node for node in part.nodes if node.op in ("Linear", "MatMul")).inputs[1] or ""
    error, gradients = model.part_error(part, {name: model.weight(name)}, {first: hidden.numpy()}, {last: wanted + 1})
    assert abs(error - wanted.size) < 1e-3
    y = hidden.view(3, 2, 3).requires_grad_(False)
    weight = module.second.weight.detach().clone().requires_grad_()
    loss = (
        (nn.functional.linear(y, weight, module.second.bias.detach()).sum(1) - torch.from_numpy(wanted + 1))
        .square()
        .sum()
    )
    (expected,) = torch.autograd.grad(loss, [weight])
    np.testing.assert_allclose(np.sort(gradients[name].ravel()), np.sort(expected.numpy().ravel()), rtol=1e-3)


def test_learn_ranges_is_the_short_form_of_trainable() -> None:
    torch.manual_seed(0)
    module, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval(), torch.randn(16, 4)
    sims = [isobit.quantize(module, [x], progress=False) for _ in range(2)]
    assert sims[0].model.learn_ranges() is sims[0].model
    sims[1].trainable()
    states = [sim.model.state_dict() for sim in sims]
    assert states[0].keys() == states[1].keys()
    assert len(sims[0].quantizer_parameters()) == len(sims[1].quantizer_parameters()) > 0
