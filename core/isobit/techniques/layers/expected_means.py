"""Means of tensors that follow from the distribution of layer outputs: through activations, sums and pooling.

Source: Nagel et al., ICCV 2019, appendix C (the clipped normal distribution).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from isobit.graph.graph import Graph, Node
from isobit.techniques.layers.normal import NormalPerChannel

Floats = NDArray[np.float64]

_MEAN_KEEPING = frozenset({"AveragePool", "GlobalAveragePool", "Dropout"})


def expected_means(
    graph: Graph, read: Callable[[str], NDArray[np.float32]], outputs: Mapping[str, NormalPerChannel]
) -> dict[str, Floats]:
    """The mean of each channel of every tensor that follows from `outputs`, tensors with a normal distribution."""
    means = {name: normal.mean for name, normal in outputs.items()}
    for node in graph.nodes:
        mean = _mean(node, read, outputs, means)
        if mean is not None:
            means.setdefault(node.outputs[0], mean)
    return means


def _mean(
    node: Node,
    read: Callable[[str], NDArray[np.float32]],
    outputs: Mapping[str, NormalPerChannel],
    means: Mapping[str, Floats],
) -> Floats | None:
    source = node.input(0) or ""
    if node.op == "Add" and len(node.inputs) == 2:
        addends = [means.get(name or "") for name in node.inputs]
        return addends[0] + addends[1] if addends[0] is not None and addends[1] is not None else None
    if node.op in _MEAN_KEEPING and not any(node.attributes.get("pads", ())):
        return means.get(source)
    normal = outputs.get(source)
    if normal is None:
        return None
    if node.op == "Relu":
        return normal.mean_between(0.0, np.inf)
    if node.op == "LeakyRelu":
        return normal.mean_between(0.0, np.inf, float(node.attributes["alpha"]))
    if node.op == "PRelu":
        return normal.mean_between(0.0, np.inf, read(node.inputs[1] or "").astype(np.float64).reshape(-1))
    if node.op == "Clip" and len(node.inputs) == 1:
        low, high = node.attributes.get("min", -np.inf), node.attributes.get("max", np.inf)
        return normal.mean_between(low, high) if np.isfinite(low) else None
    return None
