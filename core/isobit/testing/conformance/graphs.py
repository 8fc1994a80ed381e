"""Part 1: the neutral graph, weights and plain runs."""

from __future__ import annotations

import numpy as np
import pytest

from isobit.backend.checked_model import CheckedModel
from isobit.backend.contract import Backend
from isobit.canonical import canonicalize
from isobit.edits.edit import SetWeights
from isobit.errors import IsobitError
from isobit.graph.isomorphism import correspondence, differences
from isobit.graph.sites import Input, Site, Tensor, Weight
from isobit.placement.place import place
from isobit.plugins import registry
from isobit.testing.conformance.base import Build, ConformanceBase, Opened, assert_close
from isobit.testing.networks import NETWORKS


class GraphConformance(ConformanceBase):
    """Translation into the neutral graph, and running."""

    def test_graph_is_the_networks(self, opened: Opened) -> None:
        """Ops, attributes, edges and weight content are those of the neutral description."""
        network, model = opened.network, opened.model
        assert differences(network.graph, model.graph, network.weights.__getitem__, model.weight) == []

    def test_graph_is_canonical(self, opened: Opened) -> None:
        """The canonical pass changes nothing any more."""
        model = opened.model
        canonicalized = canonicalize(model.graph)
        assert differences(model.graph, canonicalized, model.weight, model.weight) == []

    def test_names(self, opened: Opened) -> None:
        """Inputs, outputs and weights have the user's names; all names are unique; node order is execution order.

        Two parts of one variable cannot both have its name.
        """
        network, graph = opened.network, opened.model.graph
        assert graph.inputs == network.graph.inputs
        assert list(graph.outputs) == list(network.graph.outputs)
        assert set(graph.weights) == {opened.weight_name(name) for name in network.graph.weights}
        nodes = [node.name for node in graph.nodes]
        assert len(set(nodes)) == len(nodes)
        names_so_far = set(graph.inputs) | set(graph.weights)
        for node in graph.nodes:
            assert {name for name in node.inputs if name is not None} <= names_so_far
            names_so_far.update(node.outputs)

    def test_tensor_facts(self, opened: Opened) -> None:
        """Shapes (the batch is dynamic), element types and channel axes agree with the description."""
        network, model = opened.network, opened.model
        pairs = correspondence(network.graph, model.graph, network.weights.__getitem__, model.weight)
        assert set(pairs) == set(network.graph.tensors)
        for described, opened_name in pairs.items():
            want, have = network.graph.tensors[described], model.graph.tensors[opened_name]
            assert have.shape is not None
            assert want.shape is not None
            fixed = [[n if isinstance(n, int) else None for n in shape] for shape in (have.shape, want.shape)]
            assert fixed[0] == fixed[1], opened_name
            assert None in fixed[0], opened_name
            assert (have.dtype, have.channel_axis) == (want.dtype, want.channel_axis), opened_name

    def test_weights_are_canonical(self, opened: Opened) -> None:
        """Every constant comes out in canonical layout, equal to the last bit."""
        for name, value in opened.network.weights.items():
            np.testing.assert_array_equal(opened.model.weight(opened.weight_name(name)), value, err_msg=name)

    def test_unknown_weight_is_an_error(self, opened: Opened) -> None:
        """Not a KeyError: the message names the weight."""
        with pytest.raises(IsobitError, match="no_such_weight"):
            opened.model.weight("no_such_weight")

    @pytest.mark.parametrize("size", [1, 3])
    def test_run(self, opened: Opened, size: int) -> None:
        """Outputs by name, for any batch size, as the NumPy interpreter computes them."""
        batch = opened.network.batch(size, seed=size)
        assert_close(opened.model.run(batch), opened.expected(batch))

    def test_plan_is_the_networks(self, opened: Opened) -> None:
        """The same placement comes out of the backend's graph and of the description."""
        network, model = opened.network, opened.model
        pairs = correspondence(network.graph, model.graph, network.weights.__getitem__, model.weight)

        def site_in_model(site: Site) -> Site:
            if isinstance(site, Input):
                producer = model.graph.producer(pairs[network.graph.node(site.node).outputs[0]])
                assert producer is not None
                return Input(producer.name, site.index)
            return Tensor(pairs[site.name]) if isinstance(site, Tensor) else Weight(opened.weight_name(site.name))

        for name in ("default", "onnxruntime-cpu", "onnxruntime-cpu-transformer"):
            target = registry().target(name)
            described_plan, opened_plan = place(network.graph, target), place(model.graph, target)
            want = {site_in_model(site): (p.spec, p.kind, p.simulated) for site, p in described_plan.placements.items()}
            assert {site: (p.spec, p.kind, p.simulated) for site, p in opened_plan.placements.items()} == want

    def test_the_original_is_not_changed(self, backend: Backend, build: Build) -> None:
        """Two openings of one description do not share anything."""
        network = NETWORKS["conv_net"]()
        batch = network.batch(2)
        first, second = (CheckedModel.of(backend.open(build(network), batch)) for _ in range(2))
        before = second.run(batch)
        first.edit([SetWeights({"fc.bias": np.full(5, 100.0, np.float32)})])
        np.testing.assert_array_equal(second.run(batch)["logits"], before["logits"])
