"""Quantizers measured one by one in parts of a model: against whole runs, within the passes that are allowed."""

from __future__ import annotations

import gc
import weakref
from importlib import import_module

import numpy as np
import pytest
from numpy_backend import checked
from technique_networks import chain, simulator

from isobit.analysis.measure_errors import copies, measure_errors
from isobit.analysis.sensitivity import measure_sites
from isobit.analysis.sensitivity.chain import Chain, Changed
from isobit.analysis.sensitivity.cut_graph import cut_into_parts
from isobit.analysis.site_errors import decibels
from isobit.errors import ModelError
from isobit.placement.signal_tensors import signal_tensors
from isobit.testing.networks import NETWORKS

measuring = import_module("isobit.analysis.sensitivity.measure_sites")


@pytest.mark.parametrize("name", sorted(NETWORKS))
@pytest.mark.parametrize("most", [1, 3, 100])
def test_parts_in_a_row_are_the_model(name: str, most: int) -> None:
    """Branches, several inputs and outputs, loops: every node is in one part, and the outputs are the same."""
    network = NETWORKS[name]()
    model = checked(network.graph, network.weights)
    parts = cut_into_parts(model.graph, most)
    assert [node for part in parts for node in part.graph.nodes] == list(model.graph.nodes)
    assert sum(part.work for part in parts) == pytest.approx(1)
    batch = network.batch(2)
    outputs = Chain(model, {}, parts, [batch]).outputs[0]
    for output, values in model.run(batch).items():
        np.testing.assert_allclose(outputs[output], values, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def measured():
    network = chain(3, spread=0.3)
    sim = simulator(network, weights="int6")
    batch = network.batch(16)
    sim.calibrate([batch])
    return measure_errors(sim.simulation, *copies(sim.simulation), [batch])


@pytest.mark.parametrize("measure", ["on", "off"])
def test_within_the_passes_allowed(measured, measure, monkeypatch) -> None:
    """Half of the samples for all, the rest for the worst: figures lie near those of whole runs on all samples."""
    trials, errors = measured.trials, measured.errors
    run = trials.without if measure == "off" else trials.alone
    whole = np.array([decibels(1.0, run(error.sites)) for error in errors])
    everything = measure_sites(trials, errors, measure)
    np.testing.assert_allclose(everything.decibels, np.clip(whole, -100, 100), atol=1e-3)
    assert everything.about.whole == len(errors)
    allowed = 0.6 * everything.about.passes
    monkeypatch.setattr(measuring, "_PASSES", allowed)
    monkeypatch.setattr(measuring, "_PASSES_A_SITE", 0.0)
    found = measure_sites(trials, errors, measure)
    assert found.about.passes <= allowed
    assert found.about.fewest < 16
    assert 0 < found.about.whole < len(errors)
    assert np.abs(np.array(found.decibels) - whole).max() < 3
    monkeypatch.setattr(measuring, "_KEPT_BYTES", 1)  # nothing can be kept between parts: sample by sample, as a whole
    np.testing.assert_allclose(measure_sites(trials, errors, measure).decibels, found.decibels, atol=3)


def test_what_does_not_run_in_parts_is_run_as_a_whole(measured, monkeypatch) -> None:
    """Also where that shows with a quantizer on alone, when the parts have run in float."""
    trials, errors = measured.trials, measured.errors[:2]

    def refuse(self, changed):
        raise ModelError("the part cannot be run alone")

    monkeypatch.setattr(Chain, "outputs_with", refuse)
    found = measure_sites(trials, errors, "on")
    whole = [decibels(1.0, trials.alone(error.sites)) for error in errors]
    np.testing.assert_allclose(found.decibels, whole, atol=1e-3)
    assert found.about.passes > len(errors)


def test_what_a_quantizer_does_not_reach_is_not_run(measured) -> None:
    """A change in the last part runs that part alone."""
    trials = measured.trials
    parts = cut_into_parts(trials.model.graph, 4)
    base, changed = trials.model.copy(), trials.model.copy()
    last = [site for site in trials.encodings if parts[-1].reads(site) and not any(p.reads(site) for p in parts[:-1])]
    assert last
    chain = Chain(base, trials.encodings, parts, trials.batches)
    before = chain.ran
    changed.enable(last[:1], on=False)
    on = {site: e for site, e in trials.encodings.items() if site != last[0]}
    outputs = next(chain.outputs_with(Changed(changed, on, last[:1])))
    assert chain.ran - before == pytest.approx(parts[-1].work)
    for name, values in changed.run(trials.batches[0]).items():
        np.testing.assert_allclose(outputs[name], values, rtol=1e-5, atol=1e-6)


def test_what_is_known_of_a_graph_goes_with_it() -> None:
    graph = NETWORKS["conv_net"]().graph
    assert signal_tensors(graph) is signal_tensors(graph)
    reference = weakref.ref(graph)
    del graph
    gc.collect()
    assert reference() is None
