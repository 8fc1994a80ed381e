"""The activation function behind a weighted layer, where it is piecewise linear."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isobit.graph.graph import Graph, Node

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Activation:
    """``f(y) = clip(y if y > 0 else slope * y, low, high)``; `slope` has one value an output channel, or one in all."""

    slope: Floats
    low: float = -np.inf
    high: float = np.inf

    def __call__(self, y: Floats, slope: Floats | float) -> Floats:
        """f of outputs whose slope, broadcast against them, is `slope`."""
        return np.asarray(np.clip(np.where(y > 0, y, slope * y), self.low, self.high))


def activation_behind(graph: Graph, layer: Node, read: Callable[[str], NDArray[np.float32]]) -> Activation | None:
    """What every reader sees a layer's output through: Relu, Clip, LeakyRelu or PRelu; None if it is anything else."""
    output = layer.outputs[0]
    uses = graph.uses(output)
    if len(uses) != 1 or output in graph.outputs.values() or uses[0].index != 0:
        return None
    node = uses[0].node
    if node.op == "Relu":
        return Activation(np.zeros(1), 0.0)
    if node.op == "Clip" and len(node.inputs) == 1:
        low, high = node.attributes.get("min", -np.inf), node.attributes.get("max", np.inf)
        return Activation(np.ones(1), float(low), float(high))
    if node.op == "LeakyRelu":
        return Activation(np.array([float(node.attributes["alpha"])]))
    slope = node.input(1)
    if node.op != "PRelu" or slope not in graph.weights or slope is None:
        return None
    values = read(slope).astype(np.float64)
    by_channel = layer.op in ("Conv", "ConvTranspose") and values.size == (values.shape[0] if values.ndim else 1)
    return Activation(values.reshape(-1)) if by_channel or values.size == 1 else None
