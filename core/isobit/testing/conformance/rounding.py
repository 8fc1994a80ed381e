"""Part 7: the rows that meet a layer's weight, and the techniques that round weights by them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from isobit.data import Batch, Dataset
from isobit.edits.draft import plan_edits
from isobit.edits.edit import Edit
from isobit.encodings.encoding import Encoding
from isobit.errors import ModelError
from isobit.graph.graph import Graph, Node
from isobit.graph.sites import Input, Site, Tensor
from isobit.placement.place import place
from isobit.placement.quant_config import QuantConfig
from isobit.plugins import registry
from isobit.statistics.layer_rows.patches import Patches
from isobit.statistics.layer_rows.rows import Rows
from isobit.statistics.observer import Request
from isobit.techniques.ada_round import AdaRound
from isobit.techniques.context import TechniqueContext
from isobit.techniques.fold_batch_norms import FoldBatchNorms
from isobit.techniques.gptq import GPTQ
from isobit.techniques.sequential_mse import SequentialMse
from isobit.techniques.technique import Technique
from isobit.testing import interpreter
from isobit.testing.conformance.base import ConformanceBase, Opened

_NAMES = ("SequentialMse", "GPTQ", "AdaRound", "AdaRound sequential")


class RoundingConformance(ConformanceBase):
    """Sampling rows in every layer, and rounding by them."""

    def test_rows_are_the_layers_inputs(self, opened: Opened) -> None:
        """Each layer's rows times its weight are its outputs at the stamped positions, as the interpreter computes."""
        model, batch = opened.model, opened.network.batch(3)
        layers = _layers(opened)
        rows_by_layer = {name: Rows(patches, limit=200) for name, (_, patches) in layers.items()}
        model.observe([batch], [Request(Input(name, 0), rows) for name, rows in rows_by_layer.items()])
        expected = interpreter.interpret(model.graph, model.weight, batch)
        for name, (node, patches) in layers.items():
            weight = patches.matrix(model.weight(node.inputs[1] or "").astype(np.float64))
            computed = np.einsum("ngc,goc->ngo", rows_by_layer[name].values, weight).reshape(
                len(rows_by_layer[name]), -1
            )
            bias = node.input(2)
            if bias is not None:
                computed = computed + model.weight(bias)
            output = expected[node.outputs[0]]
            if patches.kernel:
                output = np.moveaxis(output, 1, -1)
            output = output.reshape(output.shape[0], -1, output.shape[-1])
            sample, position = rows_by_layer[name].stamps.T
            scale = max(1.0, float(np.abs(output).max()))
            np.testing.assert_allclose(computed, output[sample, position], rtol=0, atol=1e-4 * scale, err_msg=name)

    def test_stamps_do_not_depend_on_batching(self, open_network: Callable[[str], Opened]) -> None:
        """The same stamps, and the same rows of the first layer, however the data is cut."""
        opened = open_network("conv_net")
        data = opened.network.batch(12)["image"]
        rows_by_cut = []
        for cuts in ([12], [5, 4, 3]):
            layers = _layers(opened)
            rows = {name: Rows(patches, limit=64) for name, (_, patches) in layers.items()}
            batches = [{"image": part} for part in np.split(data, np.cumsum(cuts)[:-1])]
            opened.model.observe(batches, [Request(Input(name, 0), reducer) for name, reducer in rows.items()])
            rows_by_cut.append(rows)
        for name in rows_by_cut[0]:
            np.testing.assert_array_equal(rows_by_cut[0][name].stamps, rows_by_cut[1][name].stamps)
        np.testing.assert_array_equal(rows_by_cut[0]["conv1"].values, rows_by_cut[1]["conv1"].values)

    @pytest.mark.parametrize("network", ["conv_net", "upsampler", "attention"])
    @pytest.mark.parametrize("technique", [SequentialMse(), GPTQ(), AdaRound(), AdaRound(sequential=True)], ids=_NAMES)
    def test_weights_are_those_of_the_interpreter(
        self, open_network: Callable[[str], Opened], network: str, technique: Technique
    ) -> None:
        """A technique gives the weights and encodings that it gives on the interpreter's observations."""
        _compare_with_interpreter(open_network(network), technique)

    @pytest.mark.parametrize("network", ["conv_net", "inverted_residual"])
    def test_rounding_behind_activations(self, open_network: Callable[[str], Opened], network: str) -> None:
        """The same with Relu and Clip right behind folded layers, in whose outputs the error is measured."""
        opened = open_network(network)
        FoldBatchNorms().apply(TechniqueContext(opened.model))
        _compare_with_interpreter(opened, AdaRound(activation_aware=True))


def _compare_with_interpreter(opened: Opened, technique: Technique) -> None:
    model, data = opened.model, Dataset(opened.network.batch(8), opened.model.graph, batch_size=3)
    plan = place(model.graph, registry().target("default"), QuantConfig("int4 per-channel", None, {}, ()))
    interpreted = _Interpreted(model.graph, {name: model.weight(name) for name in model.graph.weights})
    report = technique.apply(TechniqueContext(model, plan, data))
    expected = technique.apply(TechniqueContext(interpreted, plan, data))  # type: ignore[arg-type]
    assert report.changed
    assert report.encodings.keys() == expected.encodings.keys()
    for site, encoding in report.encodings.items():
        assert encoding == expected.encodings[site], site
        value = model.weight(str(site))
        np.testing.assert_allclose(value, interpreted.weight(str(site)), rtol=1e-6, err_msg=str(site))
        np.testing.assert_array_equal(value, encoding.fake_quantize(value))
    for name in interpreted.weights.keys() - {str(site) for site in report.encodings}:
        np.testing.assert_allclose(model.weight(name), interpreted.weight(name), rtol=1e-4, atol=1e-5, err_msg=name)


class _Interpreted:
    """The graph and constants of a model run by the interpreter: what the techniques need of the contract."""

    def __init__(self, graph: Graph, weights: Mapping[str, NDArray[Any]]) -> None:
        self.graph = graph
        self.weights = dict(weights)
        self.quantizers: dict[Site, Encoding] = {}

    def weight(self, name: str) -> NDArray[Any]:
        return self.weights[name]

    def copy(self) -> _Interpreted:
        return _Interpreted(self.graph, self.weights)

    def edit(self, edits: Sequence[Edit]) -> None:
        plan = plan_edits(self.graph, edits, self.weight)
        self.graph = plan.graph
        self.weights = {**self.weights, **plan.weights}

    def set_quantizers(self, encodings: Mapping[Site, Encoding | None]) -> None:
        self.quantizers.update({site: encoding for site, encoding in encodings.items() if encoding is not None})

    def observe(self, data: Iterable[Batch], requests: Sequence[Request]) -> None:
        for batch in data:
            values = interpreter.interpret(self.graph, self.weight, batch, self.quantizers)
            for request in requests:
                site = request.site
                name = site.name if isinstance(site, Tensor) else self.graph.node(site.node).inputs[site.index] or ""
                value = np.asarray(values[name], np.float32)
                request.observer.update(value, self.graph.tensors[name].channel_axis)


def _layers(opened: Opened) -> dict[str, tuple[Node, Patches]]:
    """The weighted nodes that read a tensor, with their geometry."""
    graph, layers = opened.model.graph, {}
    for node in graph.nodes:
        try:
            patches = Patches.of(graph, node)
        except ModelError:
            continue
        if node.input(0) in graph.tensors:
            layers[node.name] = (node, patches)
    return layers
