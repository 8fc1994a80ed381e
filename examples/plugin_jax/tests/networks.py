"""The reference networks as JAX functions, written as users write them; and the parameters as they keep them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from isobit.graph import Node
from isobit.testing.networks import Network
from isobit_jax import JaxModel
from isobit_jax.recurrent import gru, lstm


def build_jax(network: Network) -> JaxModel:
    """Parameters in nested dicts; linear weights as (in, out), as JAX's users have them, where nothing shares them."""
    graph, params = network.graph, {}
    for name, value in network.weights.items():
        uses = graph.uses(name)
        turned = uses[0].node.op == "Linear" and uses[0].role == "weight" and len(uses) == 1
        *path, last = name.split(".")
        inner: dict[str, Any] = params
        for part in path:
            inner = inner.setdefault(part, {})
        inner[last] = jnp.asarray(value.T if turned else value)

    def function(params: dict[str, Any], **inputs: Any) -> dict[str, Any]:
        values = dict(inputs)
        for node in graph.nodes:
            with jax.named_scope(node.name):
                operands = [values[n] if n in values else _leaf(params, n) for n in node.inputs if n is not None]
                values[node.outputs[0]] = LAYERS[node.op](node, *operands)
        return {name: values[tensor] for name, tensor in graph.outputs.items()}

    return JaxModel(function, params)


def _leaf(params: Any, name: str) -> Any:
    for part in name.split("."):
        params = params[part]
    return params


def conv(node: Node, x, kernel, bias=None):
    at = node.attributes
    padding = [(p, p) for p in at["pads"][:2]]
    y = lax.conv_general_dilated(x, kernel, at["strides"], padding, feature_group_count=at["group"])
    return y if bias is None else y + bias[:, None, None]


def conv_transpose(node: Node, x, kernel, bias):
    at = node.attributes
    if at["group"] == 1:
        dimensions = ("NCHW", "OIHW", "NCHW")
        y = lax.conv_transpose(
            x, kernel.swapaxes(0, 1), at["strides"], "VALID", dimension_numbers=dimensions, transpose_kernel=True
        )
    else:
        padding = [(k - 1, k - 1) for k in kernel.shape[2:]]
        flipped = jnp.flip(kernel, (2, 3))
        y = lax.conv_general_dilated(x, flipped, (1, 1), padding, at["strides"], feature_group_count=at["group"])
    return y + bias.reshape(1, -1, 1, 1)


def linear(node: Node, x, kernel, bias=None):
    shared = "fc1" in str(node.inputs[1])
    y = x @ (kernel.T if shared else kernel)
    return y if bias is None else y + bias


def batch_norm(node: Node, x, scale, shift, mean, variance):
    inverse = lax.rsqrt(variance + node.attributes["epsilon"]) * scale
    return (x - mean[:, None, None]) * inverse[:, None, None] + shift[:, None, None]


def layer_norm(node: Node, x, scale, shift):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(variance + node.attributes["epsilon"]) * scale + shift


def max_pool(node: Node, x):
    size, strides = ((1, 1, *node.attributes[key]) for key in ("kernel_shape", "strides"))
    return lax.reduce_window(x, -jnp.inf, lax.max, size, strides, "VALID")


def reshape(node: Node, x):
    shape = node.attributes["shape"]
    return x if shape[0] != -1 else x.reshape(x.shape[0], *shape[1:])


LAYERS = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Linear": linear,
    "BatchNormalization": batch_norm,
    "LayerNormalization": layer_norm,
    "MaxPool": max_pool,
    "LSTM": lambda node, *operands: lstm(*operands),
    "GRU": lambda node, *operands: gru(*operands),
    "Relu": lambda node, x: jax.nn.relu(x),
    "Clip": lambda node, x: jax.nn.relu6(x),
    "Sigmoid": lambda node, x: jax.nn.sigmoid(x),
    "Swish": lambda node, x: jax.nn.silu(x),
    "Gelu": lambda node, x: jax.nn.gelu(x, approximate=False),
    "Softmax": lambda node, x: jax.nn.softmax(x, node.attributes["axis"]),
    "Add": lambda node, a, b: a + b,
    "Concat": lambda node, *parts: jnp.concatenate(parts, node.attributes["axis"]),
    # behind a recurrent layer, whose axis of directions JAX's users do not have, both change nothing
    "Transpose": lambda node, x: x if x.ndim < len(node.attributes["perm"]) else x.transpose(node.attributes["perm"]),
    "Reshape": reshape,
    "MatMul": lambda node, a, b: a @ b * node.attributes["scale"] if "scale" in node.attributes else a @ b,
    "GlobalAveragePool": lambda node, x: x.mean((2, 3)),
}
