"""Part 9, continued: the same faults at layers of other kinds, from transposed convolutions to projections."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from isobit.analysis import analyze
from isobit.data import Batch
from isobit.edits.draft import Draft
from isobit.edits.edit import SetWeights
from isobit.encodings.encoding import Encoding
from isobit.graph.graph import Graph, Node
from isobit.graph.sites import Site
from isobit.placement.quant_config import QuantConfig
from isobit.plugins import registry
from isobit.quantsim.quantsim import QuantSim
from isobit.techniques.context import TechniqueContext
from isobit.techniques.fold_batch_norms import FoldBatchNorms
from isobit.techniques.layers.weighted_layer import bias_of, by_output, set_bias
from isobit.testing.conformance.base import ConformanceBase, Opened

Open = Callable[[str], Opened]

#: A network, and which of its layers of a kind is made to hurt, in the order of execution.
LAYERS = pytest.mark.parametrize(
    ("network", "op", "index"),
    [
        ("upsampler", "ConvTranspose", 1),
        ("two_inputs", "Linear", 3),
        ("shared_weights", "Linear", 1),
        ("attention", "Linear", 3),
        ("multi_head", "Linear", 0),
        ("recurrent", "LSTM", 0),
        ("recurrent", "GRU", 0),
    ],
)

#: Networks in which a channel at the output of a layer of a kind can be dead.
DEAD = pytest.mark.parametrize(
    ("network", "op"), [("upsampler", "ConvTranspose"), ("two_inputs", "Linear"), ("attention", "Linear")]
)


class LayerAnalyzingConformance(ConformanceBase):
    """One thing is wrong at a layer that is no convolution, and the analysis says which."""

    @LAYERS
    def test_a_fragile_layer_of_any_kind(self, open_network: Open, network: str, op: str, index: int) -> None:
        """What a layer reads in three bits, and its weight in three, is the worst site; 16 bits gain as predicted."""
        graph = open_network(network).model.graph
        layer = _layer(graph, op, index)
        for name in (_source(graph, layer.inputs[0] or ""), layer.inputs[1] or ""):
            sim, data = _simulator(open_network(network), overrides={name: "int3"})
            found = analyze(sim, data, checks=1)
            assert found.sites[0].name == name
            assert found.sites[0].share > 0.5
            advice = found.advice[0]
            assert (advice.site, advice.change) == (name, "16 bits")
            assert advice.measured is not None
            assert advice.predicted == pytest.approx(advice.measured, abs=1.5)

    @LAYERS
    def test_a_wrong_range_of_any_layer(self, open_network: Open, network: str, op: str, index: int) -> None:
        """Too narrow or too wide: said so of the tensor that the layer reads, and another range is the advice."""
        for factor, cause in ((1 / 8, "clipping"), (16, "wide range")):
            sim, data = _simulator(open_network(network))
            name = _source(sim.graph, _layer(sim.graph, op, index).inputs[0] or "")
            wrong: dict[Site, Encoding] = {
                site: Encoding(encoding.spec, encoding.scale * np.float32(factor), encoding.zero_point)
                for site, encoding in sim.simulation.model.encodings().items()
                if sim.plan.placements[site].tensor == name
            }
            sim.load_encodings(wrong)
            found = analyze(sim, data, checks=1)
            assert (found.sites[0].name, found.sites[0].cause) == (name, cause)
            advice = found.advice[0]
            assert (advice.site, advice.change) == (name, "range")
            assert advice.measured is not None
            # What is cut off errs alike on all paths to the outputs: without it they may gain more than by energies.
            assert advice.measured > max(1, advice.predicted - 2)
            assert cause == "clipping" or advice.predicted == pytest.approx(advice.measured, abs=2)

    @DEAD
    def test_a_dead_channel_of_any_layer(self, open_network: Open, network: str, op: str) -> None:
        """A channel that a layer leaves at zero is counted once at its tensor, and no channel of what stands before."""
        opened = open_network(network)
        FoldBatchNorms().apply(TechniqueContext(opened.model))
        layer = _before_curve(opened.model.graph, op)
        draft = Draft(opened.model.graph, opened.model.weight)
        weight = draft.value(layer.inputs[1] or "")
        alive = (np.arange(len(weight)) > 0).astype(np.float64)
        draft.apply(SetWeights({layer.inputs[1] or "": weight * by_output(weight, alive)}))
        set_bias(draft, layer, bias_of(draft, layer, len(weight)) * alive)
        opened.model.edit(draft)
        sim, data = _simulator(opened)
        dead = {site.name: site.dead for site in analyze(sim, data, checks=0).sites if site.kind == "activation"}
        curve = sim.graph.uses(layer.outputs[0])[0].node.outputs[0]
        assert {number for name, number in dead.items() if name in (layer.outputs[0], curve)} == {1}
        assert dead.get(layer.inputs[0] or "", 0) == 0

    @pytest.mark.parametrize("network", ["upsampler", "shared_weights", "attention", "recurrent"])
    def test_an_outlier_sample_of_any_network(self, open_network: Open, network: str) -> None:
        """The sample that alone sets ranges is named by its number in the data."""
        opened = open_network(network)
        data: list[Batch] = [opened.network.batch(8, seed) for seed in range(2)]
        data[1] = {name: np.array(values) for name, values in data[1].items()}
        for values in data[1].values():
            values[3] *= 20
        sim, _ = _simulator(opened, data)
        found = analyze(sim, data, checks=0)
        assert found.data.range_setters[0].sample == 8 + 3
        assert found.data.range_setters[0].times > 2


def _simulator(
    opened: Opened, data: list[Batch] | None = None, overrides: dict[str, str] | None = None
) -> tuple[QuantSim, list[Batch]]:
    config = QuantConfig(overrides=dict(overrides or {}))
    sim = QuantSim.of_backend_model(opened.model, registry().target("default"), config)
    sim.simulation.check = False
    batches = data or [opened.network.batch(8, seed) for seed in range(2)]
    sim.calibrate(batches)
    return sim, batches


def _layer(graph: Graph, op: str, index: int) -> Node:
    return [node for node in graph.nodes if node.op == op][index]


def _before_curve(graph: Graph, op: str) -> Node:
    """The first layer whose output a curve without an offset reads alone."""
    for node in graph.nodes:
        use = graph.sole_reader(node.outputs[0])
        if node.op == op and use is not None and use.node.op in ("Relu", "Gelu", "Swish"):
            return node
    raise AssertionError(f"no {op} in front of a curve")


def _source(graph: Graph, name: str) -> str:
    """The tensor whose grid a layer reads: what only moves values has no quantizer of its own."""
    producer = graph.producer(name)
    while producer is not None and producer.op in ("Reshape", "Transpose"):
        name = producer.inputs[0] or ""
        producer = graph.producer(name)
    return name
