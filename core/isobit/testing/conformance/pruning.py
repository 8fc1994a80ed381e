"""Part 9: channels that leave the network, and weights that become zero, in the framework's own model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from isobit.data import Dataset
from isobit.graph.graph import Graph
from isobit.placement.quant_config import QuantConfig
from isobit.plugins import registry
from isobit.quantsim.quantsim import QuantSim
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

    @pytest.mark.parametrize(
        ("name", "weights"), [("residual", "int8"), ("residual", "uint4"), ("attention", "int4"), ("upsampler", "int8")]
    )
    def test_integers_of_the_file_keep_the_pattern(
        self, open_network: Callable[[str], Opened], tmp_path: Path, name: str, weights: str
    ) -> None:
        """Two of each four neighbours along the input channels are the zero point."""
        opened = open_network(name)
        data = [opened.network.batch(8, seed=seed) for seed in range(2)]
        config = QuantConfig(weights=weights)
        sim = QuantSim.of_backend_model(opened.model, registry().target("onnxruntime-cpu"), config)
        (report,) = sim.apply(SparsifyWeights("2:4"), data=data)
        sim.calibrate(data, "minmax")
        fours = zeros_of_fours(sim.export(tmp_path)["model"])
        assert len(report.changed) > 1
        assert sum(bool((found >= 2).all()) for found in fours.values()) == len(report.changed)


def zeros_of_fours(path: Path) -> dict[str, NDArray[np.intp]]:
    """By integer weight of a file, how many of each four neighbours along its input channels are the zero point.

    By ONNX's own definitions of the layers alone. A weight whose input channels are no multiple of four is left out.
    """
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(path).graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    producers = {output: node for node in graph.node for output in node.output}
    found = {}
    for node in graph.node:
        dequantize = producers.get(node.input[1]) if len(node.input) > 1 else None
        if node.op_type not in _INPUT_AXES or dequantize is None or dequantize.input[0] not in constants:
            continue
        settings = {each.name: onnx.helper.get_attribute_value(each) for each in dequantize.attribute}
        integers = constants[dequantize.input[0]].astype(np.int32)
        zero_point = constants[dequantize.input[2]].astype(np.int32) if len(dequantize.input) > 2 else np.int32(0)
        axis = settings.get("axis", 1) % max(integers.ndim, 1)
        if zero_point.ndim > 1:  # of blocks along the axis
            zero_point = np.repeat(zero_point, settings["block_size"], axis)
        elif zero_point.ndim:
            zero_point = zero_point.reshape(-1, *(1,) * (integers.ndim - 1 - axis))
        transposed = any(each.name == "transB" and each.i for each in node.attribute)
        zeros = np.moveaxis(integers == zero_point, 1 if transposed else _INPUT_AXES[node.op_type], 0)
        if len(zeros) % 4 == 0:
            found[dequantize.input[0]] = zeros.reshape(-1, 4, *zeros.shape[1:]).sum(1)
    return found


#: Where the input channels are.
_INPUT_AXES = {"Conv": 1, "ConvTranspose": 0, "Gemm": 0, "MatMul": -2}


def _layer_shapes(graph: Graph) -> dict[str, tuple[int, ...]]:
    weights = [node.inputs[1] or "" for node in graph.nodes if node.op in LAYERS]
    return {name: graph.weights[name].shape for name in weights}


def _size(opened: Opened) -> int:
    return sum(int(np.prod(info.shape)) for info in opened.model.graph.weights.values())
