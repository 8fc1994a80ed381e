"""Part 7: the rows that meet a layer's weight, and the techniques that round weights by them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from isobit.backend import Request
from isobit.errors import ModelError
from isobit.graph import Node
from isobit.patches import Patches
from isobit.rows import Rows
from isobit.sites import Input
from isobit.testing import interpreter
from isobit.testing.conformance.setting import Opened, Setting


class RoundingConformance(Setting):
    """Sampling rows in every layer."""

    def test_rows_are_the_layers_inputs(self, opened: Opened) -> None:
        """Each layer's rows times its weight are its outputs at the stamped positions, as the interpreter computes."""
        model, batch = opened.model, opened.network.batch(3)
        layers = _layers(opened)
        found = {name: Rows(patches, limit=200) for name, (_, patches) in layers.items()}
        model.observe([batch], [Request(Input(name, 0), rows) for name, rows in found.items()])
        expected = interpreter.interpret(model.graph, model.weight, batch)
        for name, (node, patches) in layers.items():
            weight = patches.matrix(model.weight(node.inputs[1] or "").astype(np.float64))
            computed = np.einsum("ngc,goc->ngo", found[name].values, weight).reshape(len(found[name]), -1)
            bias = node.input(2)
            if bias is not None:
                computed = computed + model.weight(bias)
            output = expected[node.outputs[0]]
            if patches.kernel:
                output = np.moveaxis(output, 1, -1)
            output = output.reshape(output.shape[0], -1, output.shape[-1])
            sample, position = found[name].stamps.T
            scale = max(1.0, float(np.abs(output).max()))
            np.testing.assert_allclose(computed, output[sample, position], rtol=0, atol=1e-4 * scale, err_msg=name)

    def test_stamps_do_not_depend_on_batching(self, open_network: Callable[[str], Opened]) -> None:
        """The same stamps, and the same rows of the first layer, however the data is cut."""
        opened = open_network("conv_net")
        data = opened.network.batch(12)["image"]
        found = []
        for cuts in ([12], [5, 4, 3]):
            layers = _layers(opened)
            rows = {name: Rows(patches, limit=64) for name, (_, patches) in layers.items()}
            batches = [{"image": part} for part in np.split(data, np.cumsum(cuts)[:-1])]
            opened.model.observe(batches, [Request(Input(name, 0), one) for name, one in rows.items()])
            found.append(rows)
        for name in found[0]:
            np.testing.assert_array_equal(found[0][name].stamps, found[1][name].stamps)
        np.testing.assert_array_equal(found[0]["conv1"].values, found[1]["conv1"].values)


def _layers(opened: Opened) -> dict[str, tuple[Node, Patches]]:
    """The weighted nodes that read a tensor, with their geometry."""
    graph, found = opened.model.graph, {}
    for node in graph.nodes:
        try:
            patches = Patches.of(graph, node)
        except ModelError:
            continue
        if node.input(0) in graph.tensors:
            found[node.name] = (node, patches)
    return found
