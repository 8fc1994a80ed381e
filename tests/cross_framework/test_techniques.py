"""The same technique on the same network gives the same weights and encodings in every framework."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest

import isobit
from isobit.backend import CheckedModel
from isobit.graph import Graph, Weight
from isobit.placement import QuantConfig
from isobit.plugins import registry
from isobit.quantsim import QuantSim
from isobit.techniques import (
    GPTQ,
    AdaRound,
    Awq,
    BalanceChannels,
    CorrectBias,
    EqualizeCrossLayers,
    FoldBatchNorms,
    ReconstructBlocks,
    ReestimateBatchNorms,
    SequentialMse,
    SmoothQuant,
    SpatialSvd,
    Technique,
    TechniqueContext,
    TechniqueReport,
    WeightSvd,
)
from isobit.testing.networks import NETWORKS
from isobit.testing.rescaling import unbalance
from isobit_onnx.reference_networks import build_onnx
from isobit_tensorflow.reference_networks import build_keras
from isobit_torch.reference_networks import build_torch, example_of

#: Of the largest value of each constant.
CLOSE = 1e-6


@dataclass(frozen=True)
class Unbalance:
    """Curves in the place of clips, and channels of different sizes before them."""

    curve: str

    def apply(self, context: TechniqueContext) -> TechniqueReport:
        unbalance(context.model, self.curve)
        return TechniqueReport("Unbalance", ("all",))


TECHNIQUES: dict[str, tuple[str, Sequence[Technique]]] = {
    "fold": ("inverted_residual", [FoldBatchNorms()]),
    "equalize": ("inverted_residual", [FoldBatchNorms(), EqualizeCrossLayers(clip="per-channel")]),
    "equalize and absorb": ("conv_net", [FoldBatchNorms(), EqualizeCrossLayers()]),
    "correct biases": ("inverted_residual", [FoldBatchNorms(), CorrectBias()]),
    "correct biases, layer after layer": ("conv_net", [FoldBatchNorms(), CorrectBias("full")]),
    "SequentialMse": ("inverted_residual", [FoldBatchNorms(), SequentialMse()]),
    "GPTQ": ("inverted_residual", [FoldBatchNorms(), GPTQ()]),
    "AdaRound": ("inverted_residual", [FoldBatchNorms(), AdaRound()]),
    "AdaRound, sequential": ("inverted_residual", [FoldBatchNorms(), AdaRound(sequential=True)]),
    "AdaRound, activation-aware": ("inverted_residual", [FoldBatchNorms(), AdaRound(activation_aware=True)]),
    "AdaRound of a transformer": ("attention", [AdaRound()]),
    "AdaRound of transposed convolutions": ("upsampler", [FoldBatchNorms(), AdaRound()]),
    "SmoothQuant": ("attention", [SmoothQuant()]),
    "Awq": ("attention", [Awq()]),
    "BalanceChannels through Relu": ("inverted_residual", [Unbalance("Relu"), BalanceChannels()]),
    "BalanceChannels beside curves": (
        "inverted_residual",
        [Unbalance("HardSwish"), BalanceChannels(mul_gain=1, mul_share=0)],
    ),
    "re-estimate batch norms": ("conv_net", [ReestimateBatchNorms()]),
    "SpatialSvd": ("conv_net", [FoldBatchNorms(), SpatialSvd(0.5, data_aware=False)]),
    "SpatialSvd by data": ("conv_net", [FoldBatchNorms(), SpatialSvd(0.5)]),
    "WeightSvd": ("two_inputs", [WeightSvd(0.5, data_aware=False)]),
    "WeightSvd by data": ("two_inputs", [WeightSvd(0.5)]),
}

#: Techniques whose weights are solved from activations, which differ in their last bits: so do the scales.
SOLVED = {"SpatialSvd by data", "WeightSvd by data"}


BUILD = {"onnx": build_onnx, "torch": build_torch, "tensorflow": build_keras}


@cache
def opened(framework: str, name: str) -> CheckedModel:
    """A reference network, opened once: what is done, is done with copies."""
    network = NETWORKS[name]()
    example = example_of(network) if framework == "torch" else None
    return CheckedModel.of(registry().backend(framework).open(BUILD[framework](network), example))


def constants(graph: Graph) -> list[str]:
    """What the nodes read, in order: PyTorch names some constants after its functions."""
    return [name for node in graph.nodes for name in node.inputs if name in graph.weights]


@pytest.mark.parametrize("case", TECHNIQUES)
def test_weights_and_encodings_are_those_of_the_other_frameworks(case: str) -> None:
    name, techniques = TECHNIQUES[case]
    network = NETWORKS[name]()
    target = "onnxruntime-cpu-transformer" if name == "attention" else "default"
    rounds = any(isinstance(technique, AdaRound | GPTQ | SequentialMse) for technique in techniques)
    config = QuantConfig("int4 per-channel") if rounds else QuantConfig()
    sims = {
        framework: QuantSim.of_backend_model(opened(framework, name).copy(), registry().target(target), config)
        for framework in BUILD
    }
    for sim in sims.values():  # rescaling for a test makes another function
        sim.simulation.check = not any(isinstance(technique, Unbalance) for technique in techniques)
    data = [network.batch(8, seed) for seed in range(4)]
    changed = {framework: sim.apply(*techniques, data=data)[-1].changed for framework, sim in sims.items()}
    assert all(changed.values()), changed
    for sim in sims.values():
        sim.calibrate(data, "mse")  # `isobit.testing parity` compares all schemes, and the choice of one
    first = sims["onnx"]
    for framework, sim in sims.items():
        names = constants(sim.graph)
        wanted_names = constants(first.graph)
        assert len(set(names)) == len(set(wanted_names)) == len(first.graph.weights), framework
        for reference_name, weight_name in zip(wanted_names, names, strict=True):
            expected, weight = first.backend_model.weight(reference_name), sim.backend_model.weight(weight_name)
            atol = CLOSE * float(np.abs(expected).max(initial=1e-30))
            np.testing.assert_allclose(weight, expected, rtol=0, atol=atol, err_msg=f"{framework} {weight_name}")
        found_encodings = isobit.transfer(first.encodings, first, sim)
        assert found_encodings.complete, (framework, found_encodings)
        if case in SOLVED:
            for site, encoding in found_encodings.encodings.items():
                np.testing.assert_allclose(encoding.scale, sim.encodings[site].scale, rtol=1e-3, err_msg=str(site))
            continue
        assert dict(found_encodings.encodings) == dict(sim.encodings), framework


def test_blocks_are_descended_in_alike() -> None:
    """Gradients behind one another differ in their last bits: next to no integer may be another, scales hardly."""
    network = NETWORKS["residual"]()
    data = [network.batch(16, seed) for seed in range(2)]
    found = []
    for framework in ("torch", "tensorflow"):
        model = opened(framework, "residual").copy()
        sim = QuantSim.of_backend_model(model, registry().target("default"), QuantConfig("int2 per-channel"))
        _, report = sim.apply(FoldBatchNorms(), ReconstructBlocks(steps=40, batch=8), data=data)
        blocks = sum("error of the block" in line for line in report.changed)
        sites = [Weight(name) for name in constants(sim.graph) if Weight(name) in report.encodings]
        found.append((blocks, [(report.encodings[site], model.weight(site.name)) for site in sites]))
    (blocks, weights), (others, other_weights) = found
    assert blocks == others > 1  # kept in both, or left in both
    for (one, first), (other, second) in zip(weights, other_weights, strict=True):
        np.testing.assert_allclose(one.scale, other.scale, rtol=0.02)
        assert np.mean(one.quantize(first) == other.quantize(second)) > 0.95
