"""Part 9: analysis. What was made to hurt is found, named as what it is, and repaired by what is advised."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import numpy as np
import pytest

from isobit.analysis import Analysis, analyze
from isobit.analysis.measure_errors import copies, measure_errors
from isobit.analysis.sensitivity import Measure, measure_sites
from isobit.analysis.sensitivity.chain import Chain, Changed
from isobit.analysis.sensitivity.cut_graph import cut_into_parts
from isobit.analysis.site_errors import decibels
from isobit.data import Batch
from isobit.edits.draft import Draft
from isobit.edits.edit import SetWeights
from isobit.encodings.encoding import Encoding
from isobit.graph.graph import Graph, Node
from isobit.graph.ops import CURVES
from isobit.graph.sites import Input, Tensor
from isobit.placement.quant_config import QuantConfig
from isobit.plugins import registry
from isobit.quantsim.quantsim import QuantSim
from isobit.techniques.layers.weighted_layer import bias_of, by_output, set_bias
from isobit.testing.conformance.base import ConformanceBase, Opened
from isobit.testing.rescaling import unbalance

Open = Callable[[str], Opened]


class AnalyzingConformance(ConformanceBase):
    """One thing is wrong in a network, and the analysis says which."""

    def test_a_fragile_layer(self, open_network: Open) -> None:
        """A tensor of three bits is the worst site, for its levels, and 16 bits repair it as predicted."""
        name = _read_by_depthwise(open_network("inverted_residual").model.graph)
        sim, data = _simulator(open_network, overrides={name: "uint3"})
        found = analyze(sim, data, checks=1)
        worst = found.sites[0]
        assert worst.name == name
        assert worst.share > 0.5
        assert abs(sum(site.share for site in found.sites) - 1) < 0.05
        assert found.weights_alone > found.sqnr + 3
        _check_advice(found, name, "16 bits")

    def test_a_wrong_range(self, open_network: Open) -> None:
        """Too narrow it clips, too wide it has too few levels; another range repairs both."""
        for factor, cause in ((1 / 8, "clipping"), (16, "wide range")):
            sim, data = _simulator(open_network)
            name = _read_by_depthwise(sim.graph)
            before = sim.encodings[name]
            wrong = Encoding(before.spec, before.scale * np.float32(factor), before.zero_point)
            sim.load_encodings({Tensor(name): wrong})
            found = analyze(sim, data, checks=1)
            assert (found.sites[0].name, found.sites[0].cause) == (name, cause)
            assert (found.sites[0].outside > 0.02) == (cause == "clipping")
            _check_advice(found, name, "range")
            assert sim.encodings[name] == wrong

    def test_a_dead_channel(self, open_network: Open) -> None:
        """A channel that is always zero is counted at its tensor, and at no other."""
        opened = open_network("conv_net")
        layer = next(node for node in opened.model.graph.nodes if node.op == "Conv")
        draft = Draft(opened.model.graph, opened.model.weight)
        weight = draft.value(layer.inputs[1] or "")
        alive = (np.arange(len(weight)) > 0).astype(np.float64)
        draft.apply(SetWeights({layer.inputs[1] or "": weight * by_output(weight, alive)}))
        set_bias(draft, layer, bias_of(draft, layer, len(weight)) * alive)
        opened.model.edit(draft)
        sim = QuantSim.of_backend_model(opened.model, registry().target("default"), QuantConfig(exclude=("Linear",)))
        sim.simulation.check = False
        data = [opened.network.batch(8, seed) for seed in range(2)]
        sim.calibrate(data)
        assert {site.dead for site in analyze(sim, data, checks=0).sites if site.dead} == {1}

    def test_an_unbalanced_depthwise_layer(self, open_network: Open) -> None:
        """One scale for channels of very different size: said so, and grids of channels repair it as predicted."""
        opened = open_network("inverted_residual")
        unbalance(opened.model, "Relu", octaves=3)
        sim = QuantSim.of_backend_model(opened.model, registry().target("default"), QuantConfig())
        sim.simulation.check = False
        data = [opened.network.batch(8, seed) for seed in range(2)]
        sim.calibrate(data)
        found = analyze(sim, data, checks=3)
        site = found.site(_read_by_depthwise(sim.graph))
        assert site is not None
        assert site.cause == "channel spread"
        balanced = [advice for advice in found.advice if advice.change == "channel grids"]
        assert balanced
        assert any(advice.site == site.name and "depthwise layer" in advice.text for advice in balanced)
        assert all(abs(a.predicted - a.measured) < 1 for a in balanced if a.measured is not None)

    def test_an_outlier_sample(self, open_network: Open) -> None:
        """The sample that alone sets the ranges is named by its number in the data."""
        network = open_network("inverted_residual").network
        data: list[Batch] = [network.batch(8, seed) for seed in range(2)]
        data[1] = {name: np.array(values) for name, values in data[1].items()}
        for values in data[1].values():
            values[3] *= 20
        sim, _ = _simulator(open_network, data=data)
        found = analyze(sim, data, checks=0)
        assert found.data.range_setters[0].sample == 8 + 3
        assert found.data.range_setters[0].times > 2
        assert "sample 11 alone sets the range" in found.text()

    def test_every_site_measured(self, open_network: Open) -> None:
        """Each off alone; evaluated by a function of the user's; the simulator is as before."""
        sim, data = _simulator(open_network)
        before = sim.run(data[0])
        off = analyze(sim, data, lambda run: float(len(run(data[0]))), measure="off", checks=0)
        assert all(site.without is not None for site in off.sites)
        assert off.scores == {"float": 1.0, "quantized": 1.0}
        assert off.to_dict()["sites"][0]["name"] == off.sites[0].name
        for name, values in sim.run(data[0]).items():
            np.testing.assert_array_equal(values, before[name])

    @pytest.mark.parametrize("measure", ["on", "off"])
    def test_measured_in_parts_is_measured_as_a_whole(self, open_network: Open, measure: Measure) -> None:
        """What lies before a quantizer is computed once for all: figures are those of whole runs, for less work."""
        sim, data = _simulator(open_network)
        exact, simulated = copies(sim.simulation)
        measured = measure_errors(sim.simulation, exact, simulated, data)
        trials, errors = measured.trials, measured.errors
        found = measure_sites(trials, errors, measure)
        run = trials.without if measure == "off" else trials.alone
        whole = [decibels(1.0, run(error.sites)) for error in errors]
        np.testing.assert_allclose(found.decibels, np.clip(whole, -100, 100), atol=0.1)
        assert found.about.passes < len(errors)

    def test_parts_are_kept_as_long_as_their_model(self, open_network: Open) -> None:
        """Asked for again, and by copies, none is made anew; a copy goes with them when it is done with."""
        opened = open_network("inverted_residual")
        batch = opened.network.batch(2)
        copied, another = opened.model.copy(), opened.model.copy()
        parts = cut_into_parts(copied.graph, 3)
        chain = Chain(copied, {}, parts, [batch])
        first = next(node for node in copied.graph.nodes if node.inputs[0] in copied.graph.inputs)
        for _ in range(2):
            outputs = next(chain.outputs_with(Changed(another, {}, [Input(first.name, 0)])))
            assert outputs.keys() == chain.outputs[0].keys()
        assert len({id(part.of(another.graph)) for part in parts for _ in range(2)}) == len(parts)
        models = [weakref.ref(model.inner) for model in (copied, another)]
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            del copied, another, chain
            assert [model() for model in models] == [None, None]
        finally:
            if was_enabled:
                gc.enable()


def _simulator(
    open_network: Open, *, data: list[Batch] | None = None, **config: dict[str, str]
) -> tuple[QuantSim, list[Batch]]:
    opened = open_network("inverted_residual")
    target = registry().target("default")
    sim = QuantSim.of_backend_model(opened.model, target, QuantConfig(**config))  # type: ignore[arg-type]
    batches = data or [opened.network.batch(8, seed) for seed in range(2)]
    sim.calibrate(batches)
    return sim, batches


def _read_by_depthwise(graph: Graph) -> str:
    """The tensor that the depthwise layer reads."""
    layer = next(node for node in graph.nodes if _is_depthwise(node))
    name = layer.inputs[0]
    producer = graph.producer(name or "")
    assert name is not None
    assert producer is not None
    assert producer.op in CURVES | {"Relu"}
    return name


def _is_depthwise(node: Node) -> bool:
    return node.op == "Conv" and int(node.attributes.get("group", 1)) > 1


def _check_advice(found: Analysis, name: str, change: str) -> None:
    """The first advice is for this site, of this kind, and gains what was predicted."""
    advice = found.advice[0]
    assert (advice.site, advice.change) == (name, change), advice
    assert advice.measured is not None
    assert advice.measured > 1
    assert advice.predicted == pytest.approx(advice.measured, abs=1)
    assert name in found.text()
