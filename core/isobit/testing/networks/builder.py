"""Describing a network without a framework: a neutral graph and NumPy weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isobit.canonical import canonicalize
from isobit.graph.graph import Dimension, Graph, Node, Shape, TensorInfo, WeightInfo
from isobit.graph.layout import conv_transpose_layout, to_native
from isobit.graph.ops import RECURRENT
from isobit.graph.shape_inference import infer

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Network:
    """A network to build: canonical vocabulary, canonical weight layouts, axis 0 dynamic (``"batch"``)."""

    name: str
    graph: Graph
    weights: Mapping[str, Array]

    def batch(self, size: int, seed: int = 0) -> dict[str, Array]:
        """Random inputs by name: standard normal for floats, small indices for integers."""
        rng = np.random.default_rng(seed)
        inputs: dict[str, Array] = {}
        for name in self.graph.inputs:
            info = self.graph.tensors[name]
            shape = (size, *(int(n) if isinstance(n, int) else 4 for n in (info.shape or ())[1:]))
            if info.dtype == "float32":
                inputs[name] = rng.standard_normal(shape).astype(np.float32)
            else:
                inputs[name] = rng.integers(0, 8, shape).astype(info.dtype)
        return inputs


class NetworkBuilder:
    """Adds nodes one by one; each method returns the name of the tensor it made, which is the node's name."""

    def __init__(self, name: str, seed: int = 0) -> None:
        self.name = name
        self._rng = np.random.default_rng(seed)
        self._nodes: list[Node] = []
        self._inputs: list[str] = []
        self._outputs: dict[str, str] = {}
        self._tensors: dict[str, TensorInfo] = {}
        self._weights: dict[str, Array] = {}

    def input(self, name: str, *shape: int, dtype: str = "float32") -> str:
        """A model input; `shape` is that of one sample."""
        self._inputs.append(name)
        self._tensors[name] = TensorInfo(("batch", *shape), dtype)
        return name

    def output(self, name: str, tensor: str) -> None:
        """A model output."""
        self._outputs[name] = tensor

    def weight(self, name: str, value: Array) -> str:
        """A constant."""
        self._weights[name] = np.asarray(value, np.float32)
        return name

    def random_weight(self, name: str, *shape: int) -> str:
        """A constant of He-scaled normal values."""
        fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else shape[0]
        return self.weight(name, self._rng.standard_normal(shape) * np.sqrt(2.0 / fan_in))

    def op(self, op: str, name: str, *inputs: str | None, **attributes: Any) -> str:
        """Any node with one output."""
        node = Node(name, op, tuple(inputs), (name,), attributes, (name,))
        self._nodes.append(node)
        self._tensors[name] = TensorInfo(self._shape_of(node))
        return name

    def conv(
        self,
        name: str,
        x: str,
        out: int,
        kernel: int = 3,
        *,
        stride: int = 1,
        pad: int | None = None,
        group: int = 1,
        bias: bool = True,
    ) -> str:
        """A 2-d convolution with random weights ``<name>.weight`` and ``<name>.bias``."""
        channels = self._channels(x, 1)
        operands = [self.random_weight(f"{name}.weight", out, channels // group, kernel, kernel)]
        if bias:
            operands.append(self.weight(f"{name}.bias", self._rng.standard_normal(out) * 0.1))
        edge = kernel // 2 if pad is None else pad
        return self.op(
            "Conv",
            name,
            x,
            *operands,
            group=group,
            kernel_shape=(kernel, kernel),
            strides=(stride, stride),
            dilations=(1, 1),
            pads=(edge,) * 4,
        )

    def conv_transpose(self, name: str, x: str, out: int, kernel: int = 2, *, stride: int = 2, group: int = 1) -> str:
        """A transposed 2-d convolution; its weight is in canonical layout (out, in/group, k, k)."""
        channels = self._channels(x, 1)
        weight = self.random_weight(f"{name}.weight", out, channels // group, kernel, kernel)
        bias = self.weight(f"{name}.bias", self._rng.standard_normal(out) * 0.1)
        return self.op(
            "ConvTranspose",
            name,
            x,
            weight,
            bias,
            group=group,
            kernel_shape=(kernel, kernel),
            strides=(stride, stride),
            dilations=(1, 1),
            pads=(0, 0, 0, 0),
        )

    def batch_norm(self, name: str, x: str) -> str:
        """Batch normalisation with plausible trained statistics."""
        channels = self._channels(x, 1)
        rng = self._rng
        values = {
            "weight": rng.uniform(0.5, 1.5, channels),
            "bias": rng.standard_normal(channels) * 0.2,
            "running_mean": rng.standard_normal(channels) * 0.2,
            "running_var": rng.uniform(0.5, 1.5, channels),
        }
        operands = [self.weight(f"{name}.{key}", value) for key, value in values.items()]
        return self.op("BatchNormalization", name, x, *operands, epsilon=1e-5)

    def linear(self, name: str, x: str, out: int, *, weight: str | None = None, bias: bool = True) -> str:
        """A linear layer; `weight` shares a constant that is there already."""
        features = self._channels(x, -1)
        operands = [weight or self.random_weight(f"{name}.weight", out, features)]
        if bias:
            operands.append(self.weight(f"{name}.bias", self._rng.standard_normal(out) * 0.1))
        return self.op("Linear", name, x, *operands)

    def layer_norm(self, name: str, x: str) -> str:
        """Layer normalisation over the last axis."""
        features = self._channels(x, -1)
        scale = self.weight(f"{name}.weight", self._rng.uniform(0.5, 1.5, features))
        shift = self.weight(f"{name}.bias", self._rng.standard_normal(features) * 0.1)
        return self.op("LayerNormalization", name, x, scale, shift, axis=-1, epsilon=1e-5)

    def recurrent(self, op: str, name: str, x: str, hidden: int) -> str:
        """An LSTM or GRU over (sequence, batch, features); the two nodes behind it take the axis of directions away.

        The weights are PyTorch's for one layer by name, and ONNX's in the order of their gates. A GRU has both biases;
        an LSTM has none: Keras' has one where PyTorch's has two.
        """
        rows = hidden * {"LSTM": 4, "GRU": 3}[op]
        weights = [self.random_weight(f"{name}.weight_ih_l0", rows, self._channels(x, -1))]
        weights.append(self.random_weight(f"{name}.weight_hh_l0", rows, hidden))
        operands: list[str | None] = list(weights)
        attributes = {"linear_before_reset": 1} if op == "GRU" else {}
        if op == "GRU":
            biases = [
                self.weight(f"{name}.bias_{side}_l0", self._rng.standard_normal(rows) * 0.1) for side in ("ih", "hh")
            ]
            operands += [biases[0], None, None, None, None, biases[1]]
        y = self.op(op, name, x, *operands, hidden_size=hidden, **attributes)
        y = self.op("Transpose", f"{name}.by_batch", y, perm=(0, 2, 1, 3))
        return self.op("Reshape", f"{name}.joined", y, shape=(self._channels(x, 0), -1, hidden))

    def relu6(self, name: str, x: str) -> str:
        """Clip to [0, 6]."""
        return self.op("Clip", name, x, min=0.0, max=6.0)

    def global_pool(self, name: str, x: str) -> str:
        """Global average pooling to (batch, channels)."""
        return self.op("GlobalAveragePool", name, x, keepdims=0)

    def reshape(self, name: str, x: str, *shape: int) -> str:
        """A reshape of each sample."""
        return self.op("Reshape", name, x, shape=(-1, *shape))

    def build(self) -> Network:
        """The finished network."""
        infos = {n: WeightInfo.of(w, n) for n, w in self._weights.items()}
        for node in self._nodes:  # the raw graph has ONNX's layout, which the canonical pass turns
            if node.op == "ConvTranspose":
                name, group = node.inputs[1] or "", int(node.attributes["group"])
                out, per_group, *kernel = self._weights[name].shape
                layout = conv_transpose_layout((per_group * group, out // group, *kernel), group)
                infos[name] = WeightInfo.of(to_native(self._weights[name], layout), name)
        raw = Graph(tuple(self._nodes), tuple(self._inputs), self._outputs, self._tensors, infos)
        return Network(self.name, canonicalize(raw), dict(self._weights))

    def _channels(self, tensor: str, axis: int) -> int:
        shape = self._tensors[tensor].shape or ()
        size: Dimension = shape[axis]
        if not isinstance(size, int):
            raise ValueError(f"axis {axis} of {tensor!r} is unknown")
        return size

    def _shape_of(self, node: Node) -> Shape | None:
        shapes: list[Shape | None] = []
        constants: dict[int, tuple[int, ...]] = {}
        for index, name in enumerate(node.inputs):
            if name in self._weights:
                constants[index] = self._weights[name].shape
                shapes.append(self._weights[name].shape)
            elif name is not None:
                shapes.append(self._tensors[name].shape)
        if node.op == "MatMul" and shapes[0] and shapes[1]:
            return (*shapes[0][:-1], shapes[1][-1])
        if node.op == "Gather" and 0 in constants and shapes[1]:
            return (*shapes[1], constants[0][1])
        if node.op in RECURRENT and shapes[0]:
            return (shapes[0][0], 1, shapes[0][1], node.attributes["hidden_size"])
        return infer(node, shapes, constants)
