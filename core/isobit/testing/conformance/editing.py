"""Part 4: edits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from isobit.edits.draft import plan_edits
from isobit.edits.edit import AddBias, Edit, Insert, NewNode, Replace, SetWeights, Slice, Unshare
from isobit.encodings.encoding import Encoding
from isobit.errors import EditError
from isobit.graph.isomorphism import differences
from isobit.graph.sites import Input, Tensor, Weight
from isobit.techniques.context import TechniqueContext
from isobit.techniques.fold_batch_norms import FoldBatchNorms
from isobit.testing import interpreter
from isobit.testing.conformance.base import ConformanceBase, Opened, assert_close, assert_same


def node_reading(opened: Opened, weight: str) -> str:
    """The node that reads a constant."""
    return opened.model.graph.uses(weight)[0].node.name


def check_edit(opened: Opened, edits: Sequence[Edit], *, changes: bool = True) -> None:
    """Apply, then compare graph and outputs with the core's own plan of the edits, run by the interpreter."""
    model, batch = opened.model, opened.network.batch(3)
    before = model.run(batch)
    plan = plan_edits(model.graph, edits, model.weight)

    values = {name: model.weight(name) for name in model.graph.weights} | dict(plan.weights)
    model.edit(edits)
    assert differences(plan.graph, model.graph, values.__getitem__, model.weight) == []
    after = model.run(batch)
    assert_close(after, interpreter.outputs(plan.graph, values.__getitem__, batch))
    is_same = all(a.shape == before[n].shape and np.allclose(a, before[n], atol=1e-5) for n, a in after.items())
    assert is_same != changes


class EditingConformance(ConformanceBase):
    """Edits do natively what the core planned, all or nothing."""

    def test_set_weights(self, opened: Opened) -> None:
        """New values of every float constant, in whatever layout it is kept."""
        rng = np.random.default_rng(0)
        graph = opened.model.graph
        weights = {
            name: (opened.model.weight(name) * rng.uniform(0.5, 0.9, info.shape)).astype(np.float32)
            for name, info in graph.weights.items()
            if graph.uses(name)[0].role != "variance"
        }
        check_edit(opened, [SetWeights(weights)])
        for name, value in weights.items():
            np.testing.assert_array_equal(opened.model.weight(name), value)

    def test_splice_out(self, open_network: Callable[[str], Opened]) -> None:
        """A node replaced by nothing: inside, and one whose output leaves the model."""
        opened = open_network("conv_net")
        relu = next(node.name for node in opened.model.graph.nodes if node.op == "Relu")
        check_edit(opened, [Replace(relu)])
        opened = open_network("upsampler")
        sigmoid = next(node.name for node in opened.model.graph.nodes if node.op == "Sigmoid")
        check_edit(opened, [Replace(sigmoid)])
        assert list(opened.model.graph.outputs) == ["image_out"]

    def test_add_bias(self, open_network: Callable[[str], Opened]) -> None:
        """To a convolution."""
        opened = open_network("conv_net")
        node = node_reading(opened, "conv1.weight")
        check_edit(opened, [AddBias(node, np.arange(8, dtype=np.float32))])

    def test_two_layers_for_one(self, open_network: Callable[[str], Opened]) -> None:
        """A linear layer as the product of two (what weight SVD does), on two and on three axes."""
        for name, weight in (("conv_net", "fc.weight"), ("attention", "up.weight")):
            opened = open_network(name)
            node = opened.model.graph.uses(weight)[0].node
            u, s, v = np.linalg.svd(opened.model.weight(weight), full_matrices=False)
            rank = max(1, s.size // 2)
            weights = {"left": u[:, :rank] * s[:rank], "right": v[:rank]}
            chain = (NewNode("Linear", ("right",)), NewNode("Linear", ("left", node.inputs[2])))
            check_edit(opened, [Replace(node.name, chain, weights)])

    def test_two_convolutions_for_one(self, open_network: Callable[[str], Opened]) -> None:
        """A 3x3 convolution as 3x1 then 1x3 (what spatial SVD does)."""
        opened = open_network("conv_net")
        node = opened.model.graph.uses("conv1.weight")[0].node
        rng = np.random.default_rng(0)
        weights = {
            "vertical": rng.standard_normal((4, 3, 3, 1)).astype(np.float32),
            "horizontal": rng.standard_normal((8, 4, 1, 3)).astype(np.float32),
        }
        base = {"group": 1, "dilations": (1, 1), "strides": (1, 1)}
        chain = (
            NewNode("Conv", ("vertical",), {**base, "kernel_shape": (3, 1), "pads": (1, 0, 1, 0)}),
            NewNode("Conv", ("horizontal",), {**base, "kernel_shape": (1, 3), "pads": (0, 1, 0, 1)}),
        )
        check_edit(opened, [Replace(node.name, chain, weights)])

    def test_insert(self, open_network: Callable[[str], Opened]) -> None:
        """Behind a tensor for all its readers, and before one reader alone; a chain in its order."""
        opened = open_network("shared_weights")
        hidden = opened.model.graph.uses("fc1.weight")[1].node.inputs[0] or ""
        factor = {"factor": np.linspace(0.5, 2, 8, dtype=np.float32)}
        check_edit(opened, [Insert(Tensor(hidden), (NewNode("Mul", ("factor",)),), factor)])
        opened = open_network("shared_weights")
        reader = opened.model.graph.uses("fc1.weight")[1].node.name
        check_edit(opened, [Insert(Input(reader, 0), (NewNode("Mul", ("factor",)),), factor)])
        chain = NewNode("Mul", ("factor",)), NewNode("Add", ("shift",))
        both_constants = {**factor, "shift": factor["factor"] - 1}
        for behind in (True, False):
            opened = open_network("shared_weights")
            node = opened.model.graph.uses("fc1.weight")[1].node
            site = Tensor(node.inputs[0] or "") if behind else Input(node.name, 0)
            check_edit(opened, [Insert(site, chain, both_constants)])

    def test_unshare(self, open_network: Callable[[str], Opened]) -> None:
        """A copy of a shared weight changes nothing, and the two can then be set apart."""
        opened = open_network("shared_weights")
        reader = opened.model.graph.uses("fc1.weight")[1].node.name
        check_edit(opened, [Unshare("fc1.weight", reader)], changes=False)
        own_weight = opened.model.graph.node(reader).inputs[1] or ""
        assert own_weight != "fc1.weight"
        check_edit(opened, [SetWeights({own_weight: opened.model.weight(own_weight) * 2})])

    def test_slice(self, open_network: Callable[[str], Opened]) -> None:
        """Channels go, with every constant that belongs to them, through depthwise layers and residual sums."""
        opened = open_network("conv_net")
        check_edit(opened, [Slice(node_reading(opened, "conv1.weight"), (0, 2, 3, 7))])
        assert opened.model.weight("conv2.weight").shape == (16, 4, 3, 3)
        opened = open_network("inverted_residual")
        check_edit(opened, [Slice(node_reading(opened, "expand.weight"), tuple(range(0, 24, 2)))])
        assert opened.model.weight("depthwise.weight").shape == (12, 1, 3, 3)
        opened = open_network("inverted_residual")
        check_edit(opened, [Slice(node_reading(opened, "stem.weight"), (1, 2, 5))])
        assert opened.model.weight("project.weight").shape[0] == 3

    def test_refused_edits_change_nothing(self, open_network: Callable[[str], Opened]) -> None:
        """The list is one transaction: a good edit before a bad one is not made either."""
        opened = open_network("conv_net")
        model, batch = opened.model, opened.network.batch(2)
        graph, before = model.graph, model.run(batch)
        good = SetWeights({"fc.bias": np.ones(5, np.float32)})
        conv1, conv2 = node_reading(opened, "conv1.weight"), node_reading(opened, "conv2.weight")
        bad: list[tuple[Edit, str]] = [
            (Replace("nothing"), "nothing"),
            (SetWeights({"nothing": np.ones(1, np.float32)}), "nothing"),
            (SetWeights({"conv1.weight": np.ones((8, 4, 3, 3), np.float32)}), conv1),
            (AddBias(conv2, np.ones(16, np.float32)), conv2),
            (Slice(opened.model.graph.outputs["logits"], (0,)), "logits|fc"),
            (SetWeights({"fc.bias": np.full(5, np.nan, np.float32)}), "fc.bias"),
        ]
        for edit, names in bad:
            with pytest.raises(EditError, match=names):
                model.edit([good, edit])
            assert differences(graph, model.graph, opened.network.weights.__getitem__, model.weight) == []
            assert_same(model.run(batch), before)

    def test_quantizers_survive_edits(self, open_network: Callable[[str], Opened]) -> None:
        """Those of sites that are still there stay; those of removed tensors go."""
        opened = open_network("conv_net")
        model = opened.model
        relu = next(node for node in model.graph.nodes if node.op == "Relu")
        encoding = Encoding.of("int8", 0.1)
        model.set_quantizers(
            {Tensor("image"): encoding, Weight("fc.weight"): encoding, Tensor(relu.outputs[0]): encoding}
        )
        model.edit([Replace(relu.name)])
        assert dict(model.encodings()) == {Tensor("image"): encoding, Weight("fc.weight"): encoding}
        batch = opened.network.batch(2)
        assert_close(model.run(batch), opened.expected(batch, dict(model.encodings())), 2e-2)

    def test_batch_norms_fold(self, opened: Opened) -> None:
        """A technique of the core works through the contract alone, and leaves the function as it was."""
        model, batch = opened.model, opened.network.batch(3)
        before = model.run(batch)
        FoldBatchNorms().apply(TechniqueContext(model))
        assert "BatchNormalization" not in {node.op for node in model.graph.nodes}
        assert_close(model.run(batch), before)
