"""Weights alone and activations alone are measured, and rounding is left out where weights are not the loss."""

from __future__ import annotations

import pytest
from technique_networks import chain, opened, simulator

from isobit.calibration import MinMaxRange
from isobit.data import Dataset
from isobit.edits import SetWeights
from isobit.quantsim.apply import context_of
from isobit.quantsim.judging.find_loss import find_loss
from isobit.quantsim.judging.judge import Judge, mean
from isobit.quantsim.run_recipe import run_recipe
from isobit.recipes import Recipe, Step, StepResult
from isobit.techniques import GPTQ, AdaRound, FoldBatchNorms
from isobit.techniques.context import Requests


def run(weights: str, activations: str, *steps: Step, samples: int = 16) -> list[StepResult]:
    network = chain(2, spread=0)
    data = [network.batch(16, seed) for seed in range(3)]
    sim = simulator(network, weights=weights, activations=activations)
    passes = sim.passes(Dataset(data, sim.graph), None, None, None)
    run_recipe(sim.simulation, Recipe("test", "", steps, samples), passes, MinMaxRange())
    return list(sim.steps)


def test_each_is_measured_alone() -> None:
    """Weights alone: against the float network with rounded weights in their place."""
    network = chain(2, spread=0)
    batch = network.batch(16)
    sim = simulator(network, weights="int4 per-channel", activations="int8")
    passes = sim.passes(Dataset([batch], sim.graph), None, None, None)
    context = context_of(sim.simulation, passes, MinMaxRange())
    context.observe(Requests(ranges=True))
    judge = Judge.of(opened(network), [batch])
    loss = find_loss(context, judge)
    rounded = opened(network)
    values = {
        str(site): encoding.fake_quantize(rounded.weight(str(site)))
        for site, encoding in context.encodings().items()
        if sim.plan.placements[site].kind == "weight"
    }
    rounded.edit([SetWeights(values)])
    assert loss.weights == pytest.approx(mean(judge.ratios(rounded)), abs=0.01)
    assert loss.is_of_weights
    assert str(loss) == f"weights alone {loss.weights:.1f} dB, activations alone {loss.activations:.1f} dB"
    assert loss.activations > loss.weights + 5


def test_rounding_is_left_out_where_weights_are_not_the_loss() -> None:
    steps = (Step(FoldBatchNorms, keep=True), Step(AdaRound))
    lost = run("int4 per-channel", "int16", *steps)[1]
    assert lost.outcome == "kept"
    assert "weights alone" in lost.why
    idle = run("int8 per-channel", "int4", *steps)[1]
    assert (idle.outcome, idle.passes) == ("skipped", 0)
    assert idle.why.startswith("weights are not the loss: weights alone ")


def test_what_is_kept_in_any_case_is_done_unasked() -> None:
    assert run("int8 per-channel", "int4", Step(GPTQ, keep=True))[0].outcome == "kept"
    assert run("int8 per-channel", "int4", Step(GPTQ), samples=0)[0].outcome == "kept"


def test_layer_after_layer_below_8_bits() -> None:
    """As many passes as layers at 4 bits, one at 8, and one each to judge it before and behind."""
    few, many = (
        run(weights, "int16", Step(AdaRound, {"sequential": "auto"}))[0].passes for weights in ("int8", "int4")
    )
    assert few <= 3
    assert many >= 4
