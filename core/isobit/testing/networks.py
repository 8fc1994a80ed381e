"""Reference networks, described once without a framework: a neutral graph and NumPy weights.

A backend's tests build each of them natively and compare what comes back; benchmarks time the larger ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isobit.canonical import canonicalize
from isobit.graph import Dimension, Graph, Node, Shape, TensorInfo, WeightInfo
from isobit.layout import conv_transpose_layout, to_native
from isobit.ops import RECURRENT
from isobit.shapes import infer

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
        found: dict[str, Array] = {}
        for name in self.graph.inputs:
            info = self.graph.tensors[name]
            shape = (size, *(int(n) if isinstance(n, int) else 4 for n in (info.shape or ())[1:]))
            if info.dtype == "float32":
                found[name] = rng.standard_normal(shape).astype(np.float32)
            else:
                found[name] = rng.integers(0, 8, shape).astype(info.dtype)
        return found


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

        The weights are PyTorch's for one layer by name, and ONNX's in the order of their gates. There is no bias:
        Keras' LSTM has one where PyTorch's has two.
        """
        rows = hidden * {"LSTM": 4, "GRU": 3}[op]
        weights = [self.random_weight(f"{name}.weight_ih_l0", rows, self._channels(x, -1))]
        weights.append(self.random_weight(f"{name}.weight_hh_l0", rows, hidden))
        attributes = {"linear_before_reset": 1} if op == "GRU" else {}
        y = self.op(op, name, x, *weights, hidden_size=hidden, **attributes)
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


def conv_net() -> Network:
    """Convolutions with batch norm, ReLU and ReLU6, pooling and a linear layer."""
    b = NetworkBuilder("conv_net")
    x = b.input("image", 3, 16, 16)
    x = b.op("Relu", "relu1", b.batch_norm("bn1", b.conv("conv1", x, 8, bias=False)))
    x = b.op(
        "MaxPool", "pool", x, kernel_shape=(2, 2), strides=(2, 2), dilations=(1, 1), pads=(0, 0, 0, 0), ceil_mode=0
    )
    x = b.relu6("relu2", b.batch_norm("bn2", b.conv("conv2", x, 16, stride=2)))
    b.output("logits", b.linear("fc", b.global_pool("gap", x), 5))
    return b.build()


def inverted_residual() -> Network:
    """The block of MobileNetV2: expand, depthwise, project, add."""
    b = NetworkBuilder("inverted_residual", 1)
    x = b.input("image", 3, 16, 16)
    x = b.relu6("stem_act", b.batch_norm("stem_bn", b.conv("stem", x, 8, stride=2, bias=False)))
    y = b.relu6("expand_act", b.batch_norm("expand_bn", b.conv("expand", x, 24, 1, bias=False)))
    y = b.relu6("depthwise_act", b.batch_norm("depthwise_bn", b.conv("depthwise", y, 24, group=24, bias=False)))
    y = b.batch_norm("project_bn", b.conv("project", y, 8, 1, bias=False))
    x = b.op("Add", "add", x, y)
    b.output("logits", b.linear("fc", b.global_pool("gap", x), 5))
    return b.build()


def pre_activation() -> Network:
    """Batch norm before the convolution: folded forward where there is no padding, else left over; a linear one too."""
    b = NetworkBuilder("pre_activation", 2)
    x = b.input("image", 4, 8, 8)
    x = b.conv("pointwise", b.batch_norm("bn1", x), 8, 1)
    x = b.op("Relu", "relu", x)
    x = b.conv("padded", b.batch_norm("bn2", x), 8, 3)
    b.output("features", b.linear("fc", b.global_pool("gap", x), 6))
    return b.build()


def upsampler() -> Network:
    """Transposed convolutions, plain and grouped, with batch norm behind."""
    b = NetworkBuilder("upsampler", 3)
    x = b.input("image", 4, 6, 6)
    x = b.op("Relu", "relu1", b.batch_norm("bn1", b.conv_transpose("up1", x, 8)))
    x = b.conv_transpose("up2", x, 6, group=2)
    b.output("image_out", b.op("Sigmoid", "sigmoid", x))
    return b.build()


def two_inputs() -> Network:
    """Two inputs, concatenation, Swish, two outputs."""
    b = NetworkBuilder("two_inputs", 4)
    left, right = b.input("left", 10), b.input("right", 6)
    joined = b.op("Concat", "concat", b.linear("fc_left", left, 8), b.linear("fc_right", right, 8), axis=1)
    hidden = b.op("Relu", "relu", b.linear("fc_joined", joined, 12))
    b.output("score", b.linear("fc_score", hidden, 3))
    b.output("gate", b.op("Swish", "gate", hidden))
    return b.build()


def shared_weights() -> Network:
    """One linear weight with two readers."""
    b = NetworkBuilder("shared_weights", 5)
    x = b.input("x", 8)
    first = b.op("Relu", "relu1", b.linear("fc1", x, 8))
    second = b.op("Relu", "relu2", b.linear("fc2", first, 8, weight="fc1.weight"))
    b.output("y", b.linear("fc3", b.op("Add", "add", first, second), 4))
    return b.build()


def attention() -> Network:
    """One transformer block on three axes: layer norm, single-head attention, Gelu, residuals."""
    b = NetworkBuilder("attention", 6)
    x = b.input("tokens", 6, 16)
    h = b.layer_norm("norm1", x)
    q, k, v = (b.linear(name, h, 16) for name in ("query", "key", "value"))
    scores = b.op("MatMul", "scores", q, b.op("Transpose", "key_t", k, perm=(0, 2, 1)), scale=0.25)
    mixed = b.op("MatMul", "mixed", b.op("Softmax", "softmax", scores, axis=-1), v)
    x = b.op("Add", "add1", x, b.linear("out", mixed, 16))
    h = b.op("Gelu", "gelu", b.linear("up", b.layer_norm("norm2", x), 32), approximate="none")
    b.output("tokens_out", b.op("Add", "add2", x, b.linear("down", h, 16)))
    return b.build()


def recurrent() -> Network:
    """An LSTM, then a GRU, over a batch of sequences whose first axis is the batch."""
    b = NetworkBuilder("recurrent", 7)
    x = b.op("Transpose", "sequence_first", b.input("samples", 5, 6), perm=(1, 0, 2))
    x = b.recurrent("GRU", "gru", b.recurrent("LSTM", "lstm", x, 8), 7)
    x = b.op("Transpose", "batch_first", x, perm=(1, 0, 2))
    b.output("classes", b.linear("fc", x, 3))
    return b.build()


#: The reference networks by name.
NETWORKS: Mapping[str, Callable[[], Network]] = {
    make.__name__: make
    for make in (
        conv_net,
        inverted_residual,
        pre_activation,
        upsampler,
        two_inputs,
        shared_weights,
        attention,
        recurrent,
    )
}


def names() -> Sequence[str]:
    """Names of the reference networks."""
    return tuple(NETWORKS)
