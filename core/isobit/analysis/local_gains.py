"""How noise of a node's input arrives at its output, by channel: squared gains, as far as the node's op tells."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isobit.analysis.tensor_noise import Floats, TensorNoise
from isobit.graph.graph import Graph, Node
from isobit.graph.ops import WEIGHTED
from isobit.techniques.layers.weighted_layer import groups_of


@dataclass(frozen=True, eq=False)
class LocalGain:
    """Squared gains from the channels of an input to those of an output.

    ``matrix`` is (groups, outputs of a group, inputs of a group); without it every output channel gets the mean of all
    inputs times `scale`, or, where `by_channel`, that of its own channel. `part` is where the input lies in a Concat.
    """

    inputs: int
    outputs: int
    scale: Floats
    by_channel: bool = False
    matrix: Floats | None = None
    part: slice | None = None

    def forward(self, noise: Floats) -> Floats:
        """The noise of the output's channels for that of the input's."""
        if self.matrix is not None:
            groups = self.matrix.shape[0]
            return np.asarray(np.einsum("goi,gi->go", self.matrix, noise.reshape(groups, -1)).reshape(-1))
        if self.part is not None:
            result = np.zeros(self.outputs)
            result[self.part] = noise
            return result
        return self.scale * (noise if self.by_channel else noise.mean())

    def backward(self, importance: Floats) -> Floats:
        """What noise of the input's channels is worth, for what that of the output's is: the transpose."""
        if self.matrix is not None:
            groups = self.matrix.shape[0]
            return np.asarray(np.einsum("goi,go->gi", self.matrix, importance.reshape(groups, -1)).reshape(-1))
        if self.part is not None:
            return np.asarray(importance[self.part])
        if self.by_channel:
            return self.scale * importance
        return np.full(self.inputs, float((self.scale * importance).sum()) / self.inputs)


def local_gain(
    graph: Graph,
    node: Node,
    index: int,
    read: Mapping[int, TensorNoise],
    result: TensorNoise,
    weight: Callable[[str], NDArray[Any]],
) -> LocalGain:
    """The gain from input `index` of a node; `read` has the noise of all its inputs that are measured."""
    source = read[index]
    inputs, outputs = source.channels, result.channels
    if node.op in WEIGHTED and index == 0 and node.input(1) in graph.weights:
        matrix = _squared(node, weight(node.inputs[1] or ""), inputs, outputs)
        if matrix is not None:
            return LocalGain(inputs, outputs, np.ones(outputs), matrix=matrix)
    if node.op == "Concat":
        part = _part(node, index, read, outputs)
        if part is not None:
            return LocalGain(inputs, outputs, np.ones(outputs), part=part)
    is_alike = inputs == outputs
    if node.op == "Mul" and len(read) == 2:
        other = read[1 - index].signal
        factor = other if other.size == outputs else np.full(outputs, other.mean())
        return LocalGain(inputs, outputs, factor, by_channel=is_alike)
    if len(read) == 1 or node.op in ("Add", "Sub", "Sum", "Mean", "Max", "Min", "Where"):
        return LocalGain(inputs, outputs, np.ones(outputs), by_channel=is_alike)
    # Products of two activations and all else: the noise stays in the same ratio to the signal.
    signal = float(source.signal.mean())
    return LocalGain(inputs, outputs, result.signal / signal if signal > 0 else np.zeros(outputs))


def _squared(node: Node, weight: NDArray[Any], inputs: int, outputs: int) -> Floats | None:
    """Squares of a weight by output and input channel, summed over the kernel; None where the channels do not fit."""
    if node.op == "MatMul" and weight.ndim != 2:
        return None
    groups = groups_of(node) if node.op in ("Conv", "ConvTranspose") else 1
    squares = np.square(weight.astype(np.float64)).reshape(*weight.shape[:2], -1).sum(axis=2)
    if squares.shape[0] != outputs or squares.shape[1] * groups != inputs:
        return None
    return np.asarray(squares.reshape(groups, outputs // groups, squares.shape[1]))


def _part(node: Node, index: int, read: Mapping[int, TensorNoise], outputs: int) -> slice | None:
    if len(read) != len(node.inputs):
        return None
    sizes = [read[i].channels for i in range(len(node.inputs))]
    if sum(sizes) != outputs or outputs == 1:
        return None
    start = sum(sizes[:index])
    return slice(start, start + sizes[index])
