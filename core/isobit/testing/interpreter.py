"""A slow NumPy interpreter of the neutral graph, in float64: the reference that backends are compared with.

It shares no code with any backend. Quantizers are applied where `encodings` says, with the core's arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isobit.encodings.encoding import Encoding
from isobit.graph.graph import Graph, Node
from isobit.graph.sites import Input, Site, Tensor, Weight

Array = NDArray[Any]


def interpret(
    graph: Graph,
    weights: Callable[[str], Array],
    batch: Mapping[str, Array],
    encodings: Mapping[Site, Encoding] | None = None,
) -> dict[str, Array]:
    """Every tensor of the graph, by name, as its readers see it (after its quantizer)."""
    quantizers = encodings or {}
    values: dict[str, Array] = {}
    raw: dict[str, Array] = {}
    for name in graph.inputs:
        raw[name] = batch[name]
        values[name] = _through(quantizers.get(Tensor(name)), batch[name])
    for node in graph.nodes:
        operands = [_operand(node, i, values, raw, weights, quantizers) for i in range(len(node.inputs))]
        results = compute_all(node, operands)
        for name, result in zip(node.outputs, results, strict=False):
            raw[name] = result
            values[name] = _through(quantizers.get(Tensor(name)), result)
    return values


def outputs(
    graph: Graph,
    weights: Callable[[str], Array],
    batch: Mapping[str, Array],
    encodings: Mapping[Site, Encoding] | None = None,
) -> dict[str, Array]:
    """The model's outputs by name."""
    values = interpret(graph, weights, batch, encodings)
    return {name: values[tensor] for name, tensor in graph.outputs.items()}


def compute(node: Node, operands: Sequence[Any]) -> Array:
    """Output 0 of a node from its operands, None for one that is left out."""
    return compute_all(node, operands)[0]


def compute_all(node: Node, operands: Sequence[Any]) -> tuple[Array, ...]:
    """All outputs of a node that are known here."""
    results = _OPS[node.op](node, list(operands))
    return tuple(map(np.asarray, results)) if isinstance(results, list) else (np.asarray(results),)


def _through(encoding: Encoding | None, value: Array) -> Array:
    return value if encoding is None else encoding.fake_quantize(np.asarray(value, np.float32)).astype(np.float64)


def _operand(
    node: Node,
    index: int,
    values: Mapping[str, Array],
    raw: Mapping[str, Array],
    weights: Callable[[str], Array],
    quantizers: Mapping[Site, Encoding],
) -> Array | None:
    name = node.inputs[index]
    if name is None:
        return None
    reader_encoding = quantizers.get(Input(node.name, index))
    if name in values:
        return values[name] if reader_encoding is None else _through(reader_encoding, raw[name])
    encoding = reader_encoding if reader_encoding is not None else quantizers.get(Weight(name))
    return _through(encoding, weights(name))


def _windows(x: Array, kernel: tuple[int, ...], node: Node, fill: float) -> Array:
    """(batch, channels, *positions, *kernel): every window, one position at a time."""
    spatial = len(kernel)
    strides, dilations, pads = _window(node, spatial)
    padded = np.pad(x, [(0, 0), (0, 0), *((pads[i], pads[i + spatial]) for i in range(spatial))], constant_values=fill)
    sizes = [(padded.shape[2 + i] - (kernel[i] - 1) * dilations[i] - 1) // strides[i] + 1 for i in range(spatial)]
    out = np.empty((*x.shape[:2], *sizes, *kernel))
    for offset in product(*(range(k) for k in kernel)):
        window: tuple[Any, ...] = tuple(
            slice(o * d, o * d + (n - 1) * s + 1, s)
            for o, d, n, s in zip(offset, dilations, sizes, strides, strict=True)
        )
        at: tuple[Any, ...] = (..., *offset)
        out[at] = padded[(slice(None), slice(None), *window)]
    return out


def _window(node: Node, spatial: int) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
    """Strides, dilations and pads, ONNX's where the node does not say."""
    ones, at = (1,) * spatial, node.attributes
    return at.get("strides", ones), at.get("dilations", ones), at.get("pads", (0,) * (2 * spatial))


def _conv(node: Node, operands: list[Array]) -> Array:
    x, weight = operands[0].astype(np.float64), operands[1].astype(np.float64)
    group, kernel = int(node.attributes.get("group", 1)), weight.shape[2:]
    windows = _windows(x, kernel, node, 0.0)
    per_in, per_out = x.shape[1] // group, weight.shape[0] // group
    spatial = len(kernel)
    parts = []
    for g in range(group):
        inside = windows[:, g * per_in : (g + 1) * per_in]
        axes = ([1, *range(2 + spatial, 2 + 2 * spatial)], [1, *range(2, 2 + spatial)])
        parts.append(np.moveaxis(np.tensordot(inside, weight[g * per_out : (g + 1) * per_out], axes), -1, 1))
    return _biased(np.concatenate(parts, 1), operands, 1)


def _conv_transpose(node: Node, operands: list[Array]) -> Array:
    """Canonical weight (out, in/group, *kernel): every input value is stamped onto the output."""
    x, weight = operands[0].astype(np.float64), operands[1].astype(np.float64)
    group, kernel = int(node.attributes.get("group", 1)), weight.shape[2:]
    spatial = len(kernel)
    strides, dilations, pads = _window(node, spatial)
    extra = node.attributes.get("output_padding", (0,) * spatial)
    full = [(x.shape[2 + i] - 1) * strides[i] + (kernel[i] - 1) * dilations[i] + 1 + extra[i] for i in range(spatial)]
    out = np.zeros((x.shape[0], weight.shape[0], *full))
    per_in, per_out = x.shape[1] // group, weight.shape[0] // group
    for o in range(weight.shape[0]):
        g = o // per_out
        for j in range(per_in):
            for offset in product(*(range(k) for k in kernel)):
                place: tuple[Any, ...] = tuple(
                    slice(k * d, k * d + (n - 1) * s + 1, s)
                    for k, d, n, s in zip(offset, dilations, x.shape[2:], strides, strict=True)
                )
                out[(slice(None), o, *place)] += x[:, g * per_in + j] * weight[(o, j, *offset)]
    crop = tuple(slice(pads[i], full[i] - pads[i + spatial]) for i in range(spatial))
    return _biased(out[(slice(None), slice(None), *crop)], operands, 1)


def _biased(result: Array, operands: list[Array], axis: int) -> Array:
    if len(operands) < 3 or operands[2] is None:
        return result
    shape = [1] * result.ndim
    shape[axis] = -1
    return np.asarray(result + operands[2].astype(np.float64).reshape(shape))


def _linear(node: Node, operands: list[Array]) -> Array:
    result = operands[0].astype(np.float64) @ operands[1].astype(np.float64).T
    return _biased(result, operands, result.ndim - 1)


def _matmul(node: Node, operands: list[Array]) -> Array:
    return np.asarray(operands[0].astype(np.float64) @ operands[1] * node.attributes.get("scale", 1.0))


def _batch_norm(node: Node, operands: list[Array]) -> Array:
    x = operands[0].astype(np.float64)
    shape = (1, -1, *(1,) * (x.ndim - 2))
    gamma, beta, mean, variance = (v.astype(np.float64).reshape(shape) for v in operands[1:5])
    return np.asarray((x - mean) / np.sqrt(variance + node.attributes["epsilon"]) * gamma + beta)


#: By operand, for a norm that has fewer.
_NO_AFFINE = (np.zeros(()), np.ones(()), np.zeros(()))


def _layer_norm(node: Node, operands: list[Array]) -> Array:
    axes = tuple(node.attributes.get("axes", range(int(node.attributes["axis"]), 0)))
    x = operands[0].astype(np.float64)
    centered = x - x.mean(axes, keepdims=True)
    result = centered / np.sqrt((centered**2).mean(axes, keepdims=True) + node.attributes["epsilon"])
    scale, shift = (c.reshape(*c.shape, *(1,) * (-1 - axes[-1])) for c in (*operands[1:], *_NO_AFFINE[len(operands) :]))
    return np.asarray(result * scale + shift)


def _softmax(node: Node, operands: list[Array]) -> Array:
    x = operands[0].astype(np.float64)
    axis = int(node.attributes["axis"])
    e = np.exp(x - x.max(axis, keepdims=True))
    return np.asarray(e / e.sum(axis, keepdims=True))


def _max_pool(node: Node, operands: list[Array]) -> Array:
    kernel = node.attributes["kernel_shape"]
    windows = _windows(operands[0], kernel, node, -math.inf)
    return np.asarray(windows.max(tuple(range(-len(kernel), 0))))


def _global_average(node: Node, operands: list[Array]) -> Array:
    x = operands[0].astype(np.float64)
    return np.asarray(x.mean(tuple(range(2, x.ndim)), keepdims=bool(node.attributes.get("keepdims", 1))))


def _sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x.astype(np.float64))))


def _gelu(node: Node, operands: list[Array]) -> Array:
    erf = np.vectorize(math.erf)
    x = operands[0].astype(np.float64)
    return np.asarray(x * 0.5 * (1 + erf(x / math.sqrt(2))))


def _recurrent(node: Node, operands: list[Any]) -> Array:
    """Y of an LSTM or GRU of one direction, (sequence, 1, batch, hidden), from ONNX's equations gate by gate."""
    x, w, r = (operand.astype(np.float64) for operand in operands[:3])
    lengths, state, cell, peephole = [*operands[4:8], *[None] * (8 - len(operands[:8]))][:4]
    if lengths is not None or peephole is not None:
        raise ValueError(f"{node.name!r} has sequence lengths or peepholes, which this interpreter does not know")
    hidden = int(node.attributes["hidden_size"])
    gates = w.shape[0] // hidden
    wb, rb = (
        np.zeros(w.shape[0]) if len(operands) <= index or operands[index] is None else operands[index]
        for index in (3, 8)
    )
    h, c = (np.zeros((x.shape[1], hidden)) if s is None else s[0].astype(np.float64) for s in (state, cell))
    order = range(x.shape[0]) if node.attributes["direction"] == "forward" else range(x.shape[0] - 1, -1, -1)
    result = np.empty((x.shape[0], 1, x.shape[1], hidden))
    for step in order:
        from_x = np.split(x[step] @ w.T + wb, gates, -1)
        from_h = np.split(h @ r.T + rb, gates, -1)
        if node.op == "LSTM":
            i, o, f = (_sigmoid(a + b) for a, b in zip(from_x[:3], from_h[:3], strict=True))
            c = f * c + i * np.tanh(from_x[3] + from_h[3])
            h = o * np.tanh(c)
        else:
            z, reset = (_sigmoid(a + b) for a, b in zip(from_x[:2], from_h[:2], strict=True))
            if not node.attributes["linear_before_reset"]:
                from_h[2] = (reset * h) @ r[2 * hidden :].T + rb[2 * hidden :]
                reset = np.ones_like(reset)
            h = (1 - z) * np.tanh(from_x[2] + reset * from_h[2]) + z * h
        result[step, 0] = h
    return result


def _slice(node: Node, operands: list[Array]) -> Array:
    cut: list[Any] = [slice(None)] * operands[0].ndim
    for axis, start, end, step in zip(*(node.attributes[k] for k in ("axes", "starts", "ends", "steps")), strict=True):
        size = operands[0].shape[axis]
        cut[axis] = slice(start, None if step < 0 and end < -size else end, step)
    return np.asarray(operands[0][tuple(cut)])


def _split(node: Node, operands: list[Array]) -> list[Array]:
    return np.split(operands[0], np.cumsum(node.attributes["split"])[:-1], int(node.attributes["axis"]))


_OPS: Mapping[str, Callable[[Node, list[Any]], Array | list[Array]]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Linear": _linear,
    "MatMul": _matmul,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "Softmax": _softmax,
    "MaxPool": _max_pool,
    "GlobalAveragePool": _global_average,
    "Gelu": _gelu,
    "Relu": lambda node, v: np.maximum(v[0], 0),
    "LeakyRelu": lambda node, v: np.where(v[0] < 0, v[0] * node.attributes["alpha"], v[0]),
    "PRelu": lambda node, v: np.where(v[0] < 0, v[0] * v[1].reshape(-1, *(1,) * (v[0].ndim - 2)), v[0]),
    "Clip": lambda node, v: np.clip(v[0], node.attributes.get("min"), node.attributes.get("max")),
    "Sigmoid": lambda node, v: _sigmoid(v[0]),
    "Swish": lambda node, v: v[0] * _sigmoid(v[0]),
    "HardSwish": lambda node, v: v[0] * np.clip(v[0] / 6 + np.float32(0.5), 0, 1),
    "Add": lambda node, v: v[0] + v[1],
    "Sub": lambda node, v: v[0] - v[1],
    "Mul": lambda node, v: v[0] * v[1],
    "Div": lambda node, v: v[0] / v[1],
    "Max": lambda node, v: np.maximum(v[0], v[1]),
    "Min": lambda node, v: np.minimum(v[0], v[1]),
    "Concat": lambda node, v: np.concatenate(v, node.attributes["axis"]),
    "Transpose": lambda node, v: v[0].transpose(node.attributes["perm"]),
    "Reshape": lambda node, v: v[0].reshape((v[0].shape[0], *node.attributes["shape"][1:])),
    "Slice": _slice,
    "Split": _split,
    "Gather": lambda node, v: np.take(v[0], v[1], node.attributes["axis"]),
}

#: The ops that it knows.
OPS = frozenset(_OPS)
