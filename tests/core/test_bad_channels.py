"""Channels and data that teach little: no recipe is worse than plain ranges."""

from __future__ import annotations

import numpy as np
import pytest
from technique_networks import chain, simulator

import isobit
from isobit.quantsim.checks.quality import sample_decibels
from isobit.testing.networks import Network


def spoiled(kind: str) -> Network:
    """A network of three convolutions whose first one has channels of a kind."""
    network = chain(2, spread=0.5)
    weights = {name: np.array(value) for name, value in network.weights.items()}
    weight, bias = weights["conv0.weight"], weights["conv0.bias"]
    if kind == "dead":
        weight[:3], bias[:3] = 0, -1
    elif kind == "constant":
        weight[:3], bias[:3] = 0, 5
    elif kind == "on one side":
        bias[:4] += 50 * np.abs(weight).max()
        bias[4:] -= 50 * np.abs(weight).max()
    elif kind == "next to nothing":
        weight[0], bias[0] = weight[0] * 1e-30, 0
    return Network(network.name, network.graph, weights)


KINDS = ("dead", "constant", "on one side", "next to nothing", "one sample")


@pytest.mark.parametrize(
    ("kind", "recipe"), [*((kind, "fast") for kind in KINDS), ("on one side", "ptq"), ("one sample", "ptq")]
)
def test_never_worse_than_plain_ranges(kind: str, recipe: str) -> None:
    network = spoiled(kind)
    data, new = network.batch(1 if kind == "one sample" else 24), chain(2, spread=0.5).batch(40)
    figures = {}
    for label, settings in (("plain", {"techniques": (), "method": "minmax"}), (recipe, {"recipe": recipe})):
        sim = isobit.quantize(simulator(network, weights="int8"), data, batch_size=6, progress=False, **settings)
        figures[label] = np.mean(sample_decibels(sim.run_float(new), sim.run(new)))
    assert figures[recipe] > figures["plain"] - 0.3
