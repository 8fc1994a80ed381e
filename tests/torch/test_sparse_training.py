"""Sparse weights in training: zeros stay zero through optimizer steps, in the model and in what is exported."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import isobit
from isobit.techniques import GPTQ, AdaRound, SparsifyWeights
from isobit.testing.conformance.pruning import zeros_of_fours


def trained(tmp_path, keep_zeros: bool) -> tuple[nn.Module, isobit.QuantSim]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4))
    data = np.random.default_rng(0).standard_normal((32, 4, 6, 6)).astype(np.float32)
    sim = isobit.QuantSim(model, (torch.from_numpy(data[:2]),))
    sim.apply(SparsifyWeights("2:4"), data=data)
    sim.calibrate(data)
    network = sim.trainable(keep_zeros=keep_zeros)
    optimizer = torch.optim.AdamW(network.parameters(), 0.01, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        network(torch.from_numpy(data)).square().mean().backward()
        optimizer.step()
    return network, sim


@pytest.mark.parametrize("keep_zeros", [True, False])
def test_zeros_stay_through_steps_of_an_optimizer(tmp_path, keep_zeros: bool) -> None:
    network, sim = trained(tmp_path, keep_zeros)
    state = network.state_dict()
    for name in ("0.weight", "3.weight"):
        weight = state[name].numpy()
        fours = (weight.reshape(len(weight), -1, 4, *weight.shape[2:]) == 0).sum(2)
        assert (fours == 2).all() == keep_zeros
    if keep_zeros:
        fours = zeros_of_fours(sim.export(tmp_path)["model"])
        assert len(fours) == 2
        assert all((found >= 2).all() for found in fours.values())


@pytest.mark.parametrize("technique", [GPTQ(), AdaRound()])
def test_rounding_keeps_zeros(technique: object) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4))
    data = np.random.default_rng(0).standard_normal((16, 4, 6, 6)).astype(np.float32)
    sim = isobit.QuantSim(model, torch.from_numpy(data[:2]))
    sim.apply(SparsifyWeights("2:4"), technique, data=data)
    for node in sim.graph.nodes:
        if node.op in ("Conv", "Linear"):
            weight = sim.backend_model.weight(node.inputs[1])
            assert ((weight.reshape(len(weight), -1, 4, *weight.shape[2:]) == 0).sum(2) >= 2).all()


def test_zeros_that_training_cannot_keep_or_leave_are_told() -> None:
    """A sparse weight in float, and a weight of zeros alone, whose grid has no range."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    with torch.no_grad():
        model[0].weight[:, ::2] = 0
        model[4].weight.zero_()
    sim = isobit.QuantSim(model, torch.randn(4, 16), overrides={"0.weight": None})
    sim.calibrate([torch.randn(16, 16)], progress=False)
    with (
        pytest.warns(UserWarning, match=r"1 sparse weights have no quantizer, '0\.weight' among them"),
        pytest.warns(UserWarning, match=r"1 tensors were 0 everywhere .*'4\.weight'"),
    ):
        sim.trainable()
