"""Encodings from PyTorch to ONNX files that isobit did not write, and back."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import isobit
from isobit.techniques import FoldBatchNorms
from isobit.testing.networks import NETWORKS, Network
from isobit_torch.reference_networks import build_torch, example_of


class Tuple(nn.Module):
    """The old exporter takes no dict of outputs."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self.inner(*args).values())


def exported(network: Network, path: Path, *, dynamo: bool) -> Path:
    """By torch's own exporter, under its own names; the old one folds batch norms."""
    example = example_of(network)
    options = {"dynamo": True, "verbose": False} if dynamo else {"dynamo": False, "do_constant_folding": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both exporters deprecate something on each call
        torch.onnx.export(
            Tuple(build_torch(network)).eval(), tuple(example.values()), path, opset_version=18, **options,
            input_names=[f"in{index}" for index in range(len(example))],
        )  # fmt: skip
    return path


def folded(model: object, network: Network | None = None) -> isobit.QuantSim:
    sim = isobit.QuantSim(model, None if network is None else example_of(network))
    sim.apply(FoldBatchNorms())
    return sim


@pytest.mark.parametrize(
    ("name", "dynamo"),
    [("inverted_residual", True), ("recurrent", True), ("inverted_residual", False), ("multi_head", False)],
)
def test_there_and_back(name: str, dynamo: bool, tmp_path: Path) -> None:
    network = NETWORKS[name]()
    sim = folded(build_torch(network), network)
    sim.calibrate([network.batch(2, seed) for seed in range(2)])
    file = exported(network, tmp_path / "model.onnx", dynamo=dynamo)

    there = isobit.transfer(sim.encodings, sim, file)
    assert there.complete, there
    file_sim = folded(file)
    planned = isobit.transfer(sim.encodings, sim, file_sim)
    assert planned.complete, planned
    assert set(planned.encodings) == set(file_sim.plan.placements)
    assert all(
        there.encodings[site] == encoding for site, encoding in planned.encodings.items() if site in there.encodings
    )

    back = isobit.transfer(planned.encodings, file, sim)
    assert back.complete, back
    assert dict(back.encodings) == dict(sim.encodings)
