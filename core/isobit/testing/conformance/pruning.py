"""Part 9: channels that leave the network, and weights that become zero, in the framework's own model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from isobit.data import Dataset
from isobit.graph.graph import Graph
from isobit.techniques.context import TechniqueContext
from isobit.techniques.layers.weighted_layer import LAYERS
from isobit.techniques.pruning.channel_groups import edit_of, find_groups
from isobit.techniques.pruning.prune_channels import PruneChannels
from isobit.techniques.pruning.sparsify_weights import SparsifyWeights
from isobit.testing import interpreter
from isobit.testing.conformance.base import ConformanceBase, Opened, assert_close, assert_same
from isobit.testing.conformance.editing import check_edit


class PruningConformance(ConformanceBase):
    """Pruned models are smaller, and compute what the core planned."""

    @pytest.mark.parametrize("name", ["inverted_residual", "two_inputs", "multi_head"])
    def test_pruned_channels(self, open_network: Callable[[str], Opened], name: str) -> None:
        """Residual sums, depthwise layers, concatenations and heads; at 1 nothing changes."""
        opened = open_network(name)
        model, batch = opened.model, opened.network.batch(3)
        before, size = model.run(batch), _size(opened)
        context = TechniqueContext(model, dataset=Dataset([opened.network.batch(16, 1)], model.graph))
        assert not PruneChannels(1.0).apply(context).changed
        assert_same(model.run(batch), before)
        report = PruneChannels(0.6).apply(context)
        assert report.changed
        assert _size(opened) < size
        assert all(model.weight(weight).shape == info.shape for weight, info in model.graph.weights.items())
        assert_close(model.run(batch), interpreter.outputs(model.graph, model.weight, batch))

    @pytest.mark.parametrize("name", ["residual", "attention", "upsampler"])
    def test_every_group_goes_by_itself(self, open_network: Callable[[str], Opened], name: str) -> None:
        """Half of the channels of each group, as the core plans it; also those that no weight reads."""
        opened = open_network(name)
        for group in find_groups(opened.model.graph)[0]:
            copy = Opened(opened.network, opened.model.copy())
            check_edit(copy, [edit_of(copy.model.graph, [(group, range(group.count // 2))])])
            assert _size(copy) < _size(opened)

    @pytest.mark.parametrize("name", ["residual"])
    def test_sparse_weights(self, open_network: Callable[[str], Opened], name: str) -> None:
        """Zeros in their pattern, the same ones in the framework's model, whose shapes stay."""
        opened = open_network(name)
        model, batch = opened.model, opened.network.batch(3)
        shapes = _layer_shapes(model.graph)
        context = TechniqueContext(model, dataset=Dataset([opened.network.batch(16, 1)], model.graph))
        report = SparsifyWeights("50%").apply(context)
        assert report.changed
        assert _layer_shapes(model.graph) == shapes
        zeros = [float(np.mean(model.weight(weight) == 0)) for weight in shapes]
        assert sum(0.45 <= share <= 0.55 for share in zeros) == len(report.changed)
        assert_close(model.run(batch), interpreter.outputs(model.graph, model.weight, batch))


def _layer_shapes(graph: Graph) -> dict[str, tuple[int, ...]]:
    weights = [node.inputs[1] or "" for node in graph.nodes if node.op in LAYERS]
    return {name: graph.weights[name].shape for name in weights}


def _size(opened: Opened) -> int:
    return sum(int(np.prod(info.shape)) for info in opened.model.graph.weights.values())
