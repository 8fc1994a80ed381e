"""A backend in plain NumPy: the neutral graph is the model, interpreted node by node in float64, with loops.

It is slow and obviously right, and it implements `isobit.backend.BackendModel` but for `to_onnx`.
"""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from isobit.edit import Edit
from isobit.edits import plan_edits
from isobit.encoding import Encoding, Encodings
from isobit.graph import Graph, Node
from isobit.observer import Request
from isobit.sites import Input, Site, Tensor, Weight

Array = np.ndarray[Any, Any]


class NumpyBackend:
    """Opens a `NumpyModel`."""

    name = framework = "numpy"
    install = "pip install numpy"
    suffixes = ()

    def accepts(self, model: object) -> int:
        """Only its own."""
        return 2 if isinstance(model, NumpyModel) else 0

    def open(self, model: NumpyModel, example_inputs: Any = None) -> NumpyModel:
        """A copy."""
        return model.copy()

    def restore(self, state: bytes) -> NumpyModel:
        """What `NumpyModel.state` wrote."""
        model: NumpyModel = pickle.loads(state)  # from a test, for a test
        return model


class NumpyModel:
    """A graph in canonical form and the canonical values of its constants."""

    def __init__(self, graph: Graph, weights: Mapping[str, Array]) -> None:
        self.graph = graph
        self._weights = {name: np.array(weights[name]) for name in graph.weights}
        self._encodings: dict[Site, Encoding] = {}
        self._off: set[Site] = set()

    @property
    def native(self) -> Graph:
        """The graph itself."""
        return self.graph

    def weight(self, name: str) -> Array:
        """A constant."""
        return self._weights[name]

    def edit(self, edits: Sequence[Edit]) -> None:
        """Apply edits, all or none."""
        plan = plan_edits(self.graph, edits, self.weight)
        values = {**self._weights, **plan.weights}
        self.graph = plan.graph
        self._weights = {name: values[name] for name in plan.graph.weights}
        self._encodings = {site: e for site, e in self._encodings.items() if self._exists(site)}

    def set_quantizers(self, encodings: Mapping[Site, Encoding | None]) -> None:
        """Insert, update or remove quantizers."""
        for site, encoding in encodings.items():
            self._off.discard(site)
            self._encodings.pop(site, None)
            if encoding is not None:
                self._encodings[site] = encoding

    def enable(self, sites: Iterable[Site], on: bool) -> None:
        """Switch quantizers on or off."""
        for site in sites:
            (self._off.discard if on else self._off.add)(site)

    def encodings(self) -> Encodings:
        """All quantizers, on or off."""
        return Encodings(self._encodings)

    def run(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name."""
        after = self._pass(batch)[1]
        return {name: after[tensor].astype(np.float32) for name, tensor in self.graph.outputs.items()}

    def observe(self, data: Iterable[Mapping[str, Array]], requests: Sequence[Request]) -> None:
        """Feed every observer with every batch."""
        for batch in data:
            before, after = self._pass(batch)
            for request in requests:
                site, stage = request.site, before if request.stage == "before" else after
                name = site.name if isinstance(site, Tensor) else self.graph.node(site.node).inputs[site.index] or ""
                axis = self.graph.tensors[name].channel_axis
                request.observer.update(stage[name].astype(np.float32), axis)

    def copy(self) -> NumpyModel:
        """An independent copy."""
        twin = NumpyModel(self.graph, self._weights)
        twin._encodings, twin._off = dict(self._encodings), set(self._off)
        return twin

    def state(self) -> bytes:
        """Everything."""
        return pickle.dumps(self)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _exists(self, site: Site) -> bool:
        if isinstance(site, Input):
            return any(node.name == site.node for node in self.graph.nodes)
        return site.name in (self.graph.tensors if isinstance(site, Tensor) else self.graph.weights)

    def _quantized(self, value: Array, *sites: Site) -> Array:
        """`value` through the quantizer of the first of `sites` that has one."""
        for site in sites:
            if site in self._encodings:
                return value if site in self._off else self._encodings[site].fake_quantize(value).astype(np.float64)
        return value

    def _pass(self, batch: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
        """Every tensor before and after its quantizer."""
        before: dict[str, Array] = {name: _working(batch[name]) for name in self.graph.inputs}
        after = {name: self._quantized(value, Tensor(name)) for name, value in before.items()}
        for node in self.graph.nodes:
            operands: list[Array | None] = []
            for index, name in enumerate(node.inputs):
                here = Input(node.name, index)
                if name is None:
                    operands.append(None)
                elif name in self._weights:
                    operands.append(self._quantized(_working(self._weights[name]), here, Weight(name)))
                else:
                    operands.append(self._quantized(before[name], here) if here in self._encodings else after[name])
            tensor = node.outputs[0]
            before[tensor] = compute(node, operands)
            after[tensor] = self._quantized(before[tensor], Tensor(tensor))
        return before, after


def _working(value: Array) -> Array:
    return value.astype(np.float64) if value.dtype.kind == "f" else value


# --- operators: straight from the ONNX operator specification -------------------------------------------------------


def compute(node: Node, operands: Sequence[Array | None]) -> Array:
    """Output 0 of a node."""
    return OPERATORS[node.op](node, *operands)


def windows(x: Array, kernel: Sequence[int], node: Node, fill: float = 0.0) -> tuple[Array, tuple[int, ...]]:
    """The values under a sliding window, (batch, channels, *out, *kernel), and the output's spatial shape."""
    n = len(kernel)
    strides = node.attributes.get("strides", (1,) * n)
    dilations = node.attributes.get("dilations", (1,) * n)
    pads = node.attributes.get("pads", (0,) * (2 * n))
    x = np.pad(x, ((0, 0), (0, 0), *zip(pads[:n], pads[n:], strict=True)), constant_values=fill)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    out = tuple((size - r) // s + 1 for size, r, s in zip(x.shape[2:], reach, strides, strict=True))
    found = np.empty((*x.shape[:2], *out, *kernel))
    for place in itertools.product(*map(range, out)):
        for tap in itertools.product(*map(range, kernel)):
            at = tuple(p * s + t * d for p, s, t, d in zip(place, strides, tap, dilations, strict=True))
            found[(slice(None), slice(None), *place, *tap)] = x[(slice(None), slice(None), *at)]
    return found, out


def conv(node: Node, x: Array, weight: Array, bias: Array | None = None) -> Array:
    """Convolution; weight (out, in/groups, *kernel)."""
    groups = int(node.attributes.get("group", 1))
    taken, out = windows(x, weight.shape[2:], node)
    per_in, per_out = weight.shape[1], weight.shape[0] // groups
    axes = tuple(range(2 + len(out), taken.ndim))
    result = np.empty((x.shape[0], weight.shape[0], *out))
    for channel in range(weight.shape[0]):
        first = channel // per_out * per_in
        result[:, channel] = np.tensordot(
            taken[:, first : first + per_in], weight[channel], axes=((1, *axes), tuple(range(weight.ndim - 1)))
        )
    return result if bias is None else result + bias.reshape(-1, *(1,) * len(out))


def conv_transpose(node: Node, x: Array, weight: Array, bias: Array | None = None) -> Array:
    """Transposed convolution; weight (out, in/groups, *kernel): each input value stamps its kernel on the output."""
    groups = int(node.attributes.get("group", 1))
    kernel = weight.shape[2:]
    n = len(kernel)
    strides = node.attributes.get("strides", (1,) * n)
    pads = node.attributes.get("pads", (0,) * (2 * n))
    extra = node.attributes.get("output_padding", (0,) * n)
    full = [(size - 1) * s + k + e for size, s, k, e in zip(x.shape[2:], strides, kernel, extra, strict=True)]
    result = np.zeros((x.shape[0], weight.shape[0], *full))
    per_in, per_out = weight.shape[1], weight.shape[0] // groups
    for out, inner in itertools.product(range(weight.shape[0]), range(per_in)):
        source = x[:, out // per_out * per_in + inner]
        for place in itertools.product(*map(range, source.shape[1:])):
            stamp = tuple(slice(p * s, p * s + k) for p, s, k in zip(place, strides, kernel, strict=True))
            values = source[(slice(None), *place)].reshape(-1, *(1,) * n)
            result[(slice(None), out, *stamp)] += values * weight[out, inner]
    if bias is not None:
        result += bias.reshape(-1, *(1,) * n)
    inside = tuple(slice(b, size - e) for b, e, size in zip(pads[:n], pads[n:], full, strict=True))
    return result[(slice(None), slice(None), *inside)]


def linear(node: Node, x: Array, weight: Array, bias: Array | None = None) -> Array:
    """Weight (out, in) on the last axis."""
    result = x @ weight.T
    return result if bias is None else result + bias


def batch_norm(node: Node, x: Array, gamma: Array, beta: Array, mean: Array, variance: Array) -> Array:
    """Normalisation of axis 1 with fixed statistics."""
    gamma, beta, mean, variance = (v.reshape(-1, *(1,) * (x.ndim - 2)) for v in (gamma, beta, mean, variance))
    return (x - mean) / np.sqrt(variance + node.attributes["epsilon"]) * gamma + beta


def layer_norm(node: Node, x: Array, scale: Array, shift: Array | None = None) -> Array:
    """Normalisation of the last axis."""
    centered = x - x.mean(-1, keepdims=True)
    scaled = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + node.attributes["epsilon"]) * scale
    return scaled if shift is None else scaled + shift


def softmax(node: Node, x: Array) -> Array:
    """Softmax along ``axis``."""
    raised = np.exp(x - x.max(node.attributes["axis"], keepdims=True))
    return raised / raised.sum(node.attributes["axis"], keepdims=True)


def max_pool(node: Node, x: Array) -> Array:
    """Largest value of each window."""
    kernel = node.attributes["kernel_shape"]
    taken, _ = windows(x, kernel, node, fill=-np.inf)
    return taken.max(tuple(range(-len(kernel), 0)))


def global_pool(node: Node, x: Array) -> Array:
    """Mean over space."""
    return x.mean(tuple(range(2, x.ndim)), keepdims=bool(node.attributes.get("keepdims", 1)))


def reshape(node: Node, x: Array) -> Array:
    """Reshape of each sample."""
    return x.reshape(x.shape[0], *node.attributes["shape"][1:])


def sigmoid(x: Array) -> Array:
    """The logistic function."""
    return 1 / (1 + np.exp(-x))


def steps(node: Node, x: Array, advance: Callable[[Array], Array]) -> Array:
    """Y of a recurrent layer: `advance` goes from one step's input to the hidden state after it."""
    turn = -1 if node.attributes["direction"] == "reverse" else 1
    return np.stack([advance(step) for step in x[::turn]])[::turn, None]


def biases(w: Array, bias: Array | None = None, *rest: Array | None) -> tuple[Array, Array]:
    """Both halves of a recurrent layer's bias, zeros where there is none."""
    zeros = np.zeros(w.shape[0], np.float32)
    recurrent_bias = rest[4] if len(rest) > 4 else None
    return zeros if bias is None else bias, zeros if recurrent_bias is None else recurrent_bias


def lstm(node: Node, x: Array, w: Array, r: Array, *rest: Array | None) -> Array:
    """The equations of ONNX LSTM, gates in the order i, o, f, c."""
    bias, recurrent_bias = biases(w, *rest)
    h = c = np.zeros((x.shape[1], r.shape[1]))

    def advance(step: Array) -> Array:
        nonlocal h, c
        i, o, f, g = np.split(step @ w.T + h @ r.T + bias + recurrent_bias, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        return h

    return steps(node, x, advance)


def gru(node: Node, x: Array, w: Array, r: Array, *rest: Array | None) -> Array:
    """The equations of ONNX GRU with ``linear_before_reset``, gates in the order z, r, h."""
    bias, recurrent_bias = biases(w, *rest)
    h = np.zeros((x.shape[1], r.shape[1]))

    def advance(step: Array) -> Array:
        nonlocal h
        zx, rx, hx = np.split(step @ w.T + bias, 3, axis=1)
        zh, rh, hh = np.split(h @ r.T + recurrent_bias, 3, axis=1)
        update = sigmoid(zx + zh)
        h = (1 - update) * np.tanh(hx + sigmoid(rx + rh) * hh) + update * h
        return h

    return steps(node, x, advance)


OPERATORS: Mapping[str, Callable[..., Array]] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Linear": linear,
    "LSTM": lstm,
    "GRU": gru,
    "BatchNormalization": batch_norm,
    "Softmax": softmax,
    "MaxPool": max_pool,
    "GlobalAveragePool": global_pool,
    "Reshape": reshape,
    "Relu": lambda node, x: np.maximum(x, 0),
    "Clip": lambda node, x: np.clip(x, node.attributes.get("min"), node.attributes.get("max")),
    "Sigmoid": lambda node, x: sigmoid(x),
    "LeakyRelu": lambda node, x: np.where(x < 0, x * node.attributes["alpha"], x),
    "LayerNormalization": lambda node, x, *affine: layer_norm(node, x, *affine),
    "Max": lambda node, a, b: np.maximum(a, b),
    "Min": lambda node, a, b: np.minimum(a, b),
    "Add": lambda node, a, b: a + b,
    "Sub": lambda node, a, b: a - b,
    "Mul": lambda node, a, b: a * b,
    "Div": lambda node, a, b: a / b,
    "Concat": lambda node, *parts: np.concatenate(parts, node.attributes["axis"]),
    "Transpose": lambda node, x: x.transpose(node.attributes["perm"]),
    "PRelu": lambda node, x, slope: np.where(x < 0, x * slope.reshape(-1, *(1,) * (x.ndim - 2)), x),
}
