"""The ops of the neutral graph in JAX, canonical layouts in and out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from isobit.graph import Node
from isobit_jax.recurrent import gru, lstm, product

Kernel = Callable[..., Any]


def _spatial(node: Node) -> dict[str, Any]:
    pads, attributes = node.attributes["pads"], node.attributes
    half = len(pads) // 2
    padding = list(zip(pads[:half], pads[half:], strict=True))
    return {"window_strides": attributes["strides"], "padding": padding, "rhs_dilation": attributes["dilations"]}


def _conv(node: Node, x: Any, weight: Any, bias: Any = None) -> Any:
    result = lax.conv_general_dilated(x, weight, **_spatial(node), feature_group_count=node.attributes["group"])
    return result if bias is None else result + _over_channels(bias, result)


def _conv_transpose(node: Node, x: Any, weight: Any, bias: Any = None) -> Any:
    """A convolution of the input dilated by the strides with the kernel turned around."""
    settings, space = _spatial(node), range(2, weight.ndim)
    extra = node.attributes.get("output_padding") or (0,) * len(space)
    reach = [(weight.shape[axis] - 1) * settings["rhs_dilation"][axis - 2] for axis in space]
    padding = [(r - low, r - high + e) for r, (low, high), e in zip(reach, settings["padding"], extra, strict=True)]
    result = lax.conv_general_dilated(
        x, jnp.flip(weight, tuple(space)), (1,) * len(space), padding, lhs_dilation=settings["window_strides"],
        rhs_dilation=settings["rhs_dilation"], feature_group_count=node.attributes["group"],
    )  # fmt: skip
    return result if bias is None else result + _over_channels(bias, result)


def _over_channels(values: Any, x: Any) -> Any:
    return values.reshape(-1, *(1,) * (x.ndim - 2))


def _batch_norm(node: Node, x: Any, *operands: Any) -> Any:
    scale, shift, mean, variance = (_over_channels(operand, x) for operand in operands)
    return (x - mean) / jnp.sqrt(variance + node.attributes["epsilon"]) * scale + shift


def _norm(node: Node, x: Any, scale: Any = 1.0, shift: Any = 0.0) -> Any:
    axes = tuple(node.attributes.get("axes", range(node.attributes["axis"], 0)))
    scale, shift = (jnp.expand_dims(operand, tuple(range(axes[-1] + 1, 0))) for operand in (scale, shift))
    x = x - x.mean(axes, keepdims=True) * (node.op == "LayerNormalization")
    return x / jnp.sqrt((x**2).mean(axes, keepdims=True) + node.attributes["epsilon"]) * scale + shift


def _max_pool(node: Node, x: Any) -> Any:
    strides, padding, dilations = _spatial(node).values()
    window, strides, dilations = ((1, 1, *sizes) for sizes in (node.attributes["kernel_shape"], strides, dilations))
    return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, [(0, 0), (0, 0), *padding], None, dilations)


def _recurrent(layer: Kernel) -> Kernel:
    """The graph's second bias is input 8."""
    return lambda node, x, w, r, *more: layer(
        x, w, r, *more[:1], *more[5:6], reverse=node.attributes["direction"] == "reverse"
    )[:, None]


def _reduce(function: Kernel) -> Kernel:
    return lambda node, x: function(x, tuple(node.attributes["axes"]), keepdims=node.attributes.get("keepdims", 1) != 0)


def _plain(function: Kernel) -> Kernel:
    return lambda node, *operands: function(*operands)


KERNELS: Mapping[str, Kernel] = {
    **{op: _plain(function) for op, function in {
        "Relu": jax.nn.relu, "Sigmoid": jax.nn.sigmoid, "Swish": jax.nn.silu, "HardSwish": jax.nn.hard_swish,
        "Tanh": jnp.tanh, "Exp": jnp.exp,
        "Log": jnp.log, "Sqrt": jnp.sqrt, "Reciprocal": lambda x: 1 / x, "Neg": jnp.negative, "Abs": jnp.abs,
        "Erf": lax.erf, "Add": jnp.add, "Sub": jnp.subtract, "Mul": jnp.multiply, "Div": jnp.divide, "Pow": jnp.power,
        "Max": jnp.maximum, "Min": jnp.minimum,
    }.items()},
    "Conv": _conv, "ConvTranspose": _conv_transpose, "Linear": _plain(product), "BatchNormalization": _batch_norm,
    "LayerNormalization": _norm, "RMSNormalization": _norm, "MaxPool": _max_pool,
    "LSTM": _recurrent(lstm), "GRU": _recurrent(gru),
    "MatMul": lambda node, a, b: a @ b * node.attributes.get("scale", 1.0),
    "Softmax": lambda node, x: jax.nn.softmax(x, node.attributes["axis"]),
    "Gelu": lambda node, x: jax.nn.gelu(x, node.attributes["approximate"] == "tanh"),
    "Clip": lambda node, x: jnp.clip(x, node.attributes.get("min"), node.attributes.get("max")),
    "GlobalAveragePool": lambda node, x: x.mean(range(2, x.ndim), keepdims=bool(node.attributes.get("keepdims", 1))),
    # The batch axis may be any: only one dimension is unknown.
    "Reshape": lambda node, x: x.reshape([n if isinstance(n, int) else -1 for n in node.attributes["shape"]]),
    "Transpose": lambda node, x: x.transpose(node.attributes["perm"]),
    "Concat": lambda node, *parts: jnp.concatenate(parts, node.attributes["axis"]),
    **{f"Reduce{name}": _reduce(function) for name, function in {
        "Mean": jnp.mean, "Sum": jnp.sum, "Max": jnp.max, "Min": jnp.min,
    }.items()},
}  # fmt: skip
