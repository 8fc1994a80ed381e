"""One rule for each primitive of JAX: the nodes of the neutral graph that compute the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from isobit.errors import ModelError
from isobit_jax.rules_scan import scan
from isobit_jax.values import Value

if TYPE_CHECKING:
    from isobit_jax.reading import Reader

#: The result, or one for each output, of a reader, an equation of the jaxpr and its operands.
Rule = Callable[..., Value | Sequence[Value]]


def _plain(op: str) -> Rule:
    return lambda reader, eqn, *operands: reader.node(op, operands, eqn.outvars[0].aval)


def _erfc(reader: Reader, eqn: Any, x: Value) -> Value:
    """``1 + erf(-x)``."""
    return reader.node("Add", [reader.number(1), reader.node("Erf", [reader.node("Neg", [x], x)], x)], x)


def _power(reader: Reader, eqn: Any, x: Value) -> Value:
    return reader.node("Pow", [x, reader.number(eqn.params.get("y", 2))], x)


def _reduce(op: str) -> Rule:
    return lambda reader, eqn, x: reader.node(op, [x], eqn.outvars[0].aval, axes=tuple(eqn.params["axes"]), keepdims=0)


# --- shapes ----------------------------------------------------------------------------------------------------------


def _reshape(reader: Reader, eqn: Any, x: Value, *sizes: Value) -> Value:
    """Axes of size 1 in front change nothing for a reader that broadcasts, which every reader of a vector does."""
    out = eqn.outvars[0].aval
    more = len(out.shape) - len(x.shape)
    constant = x.literal is not None or x.name in reader.builder.arrays
    if constant and more > 0 and (1,) * more + x.shape == tuple(out.shape):
        return replace(x, shape=tuple(out.shape))
    if eqn.primitive.name == "broadcast_in_dim" and [n for n in x.shape if n != 1] != [n for n in out.shape if n != 1]:
        problem = f"a value of shape {x.shape} is repeated to {out.shape}: let operators broadcast instead"
        return Value(tuple(out.shape), x.dtype, literal=x.literal, problem=problem)
    return reader.node("Reshape", [x], out, shape=tuple(n if isinstance(n, int) else -1 for n in out.shape))


def _concatenate(reader: Reader, eqn: Any, *operands: Value) -> Value:
    return reader.node("Concat", operands, eqn.outvars[0].aval, axis=int(eqn.params["dimension"]))


def _max_pool(reader: Reader, eqn: Any, x: Value) -> Value:
    params = eqn.params
    if any(n != 1 for n in (*params["window_dimensions"][:2], *params["base_dilation"])) or len(params["padding"]) < 3:
        raise ModelError("reduce_window_max is read over the axes behind (batch, channels) alone")
    low, high = zip(*params["padding"][2:], strict=True)
    return reader.node(
        "MaxPool", [x], eqn.outvars[0].aval, kernel_shape=tuple(params["window_dimensions"][2:]),
        strides=tuple(params["window_strides"][2:]), dilations=tuple(params["window_dilation"][2:]),
        pads=(*low, *high), ceil_mode=0,
    )  # fmt: skip


# --- products --------------------------------------------------------------------------------------------------------


def _dot(reader: Reader, eqn: Any, a: Value, b: Value) -> Value:
    """A matrix product, the operands turned where they are contracted over another axis."""
    (left, right), (left_batch, right_batch) = eqn.params["dimension_numbers"]
    batch = tuple(range(len(left_batch)))
    if len(left) != 1 or left_batch != batch or right_batch != batch or len(b.shape) != len(batch) + 2:
        raise ModelError(f"a product of {a.shape} and {b.shape} over axes {left} and {right} is no matrix product")
    if batch and len(a.shape) != len(batch) + 2:
        raise ModelError(f"a batched product of {a.shape} and {b.shape} is no product of matrices")
    rest = [axis for axis in range(len(a.shape)) if axis != left[0]]
    free = next(axis for axis in range(len(batch), len(b.shape)) if axis != right[0])
    turned = [reader.moved(a, (*rest, left[0])), reader.moved(b, (*batch, right[0], free))]
    return reader.node("MatMul", turned, eqn.outvars[0].aval)


def _conv(reader: Reader, eqn: Any, x: Value, kernel: Value) -> Value:
    """Conv, or ConvTranspose where the input is dilated; brought to (batch, channels, space) where it is not."""
    params, result = eqn.params, eqn.outvars[0].aval
    lhs, rhs, out = params["dimension_numbers"]
    low, high = zip(*params["padding"], strict=True)
    kernel = reader.moved(kernel, rhs)
    settings: dict[str, Any] = {
        "group": params["feature_group_count"], "dilations": tuple(params["rhs_dilation"]),
        "kernel_shape": kernel.shape[2:], "strides": tuple(params["window_strides"]),
    }  # fmt: skip
    op = "Conv"
    if any(n != 1 for n in params["lhs_dilation"]):
        if kernel.flipped != set(range(2, len(rhs))):
            raise ModelError("a transposed convolution is read as jax.lax.conv_transpose(..., transpose_kernel=True)")
        op, settings["strides"] = "ConvTranspose", tuple(params["lhs_dilation"])
        reach = [(k - 1) * d for k, d in zip(settings["kernel_shape"], settings["dilations"], strict=True)]
        low, high = (tuple(r - n for r, n in zip(reach, ends, strict=True)) for ends in (low, high))
        if any(n < 0 for n in high):
            settings["output_padding"] = tuple(max(0, -n) for n in high)
        high = tuple(max(0, n) for n in high)
        kernel = _onnx_transposed(reader, replace(kernel, flipped=frozenset()), settings["group"])
    turned = Value(tuple(result.shape[axis] for axis in out), str(result.dtype))
    y = reader.node(op, [reader.moved(x, lhs), kernel], turned, **settings, pads=(*low, *high))
    return reader.moved(y, np.argsort(out).tolist())


def _onnx_transposed(reader: Reader, kernel: Value, group: int) -> Value:
    """(out, in/group, *k) as ONNX has it, (in, out/group, *k)."""
    out, inner, *space = kernel.shape

    def viewed(value: Value, *shape: int) -> Value:
        return reader.node("Reshape", [value], Value(shape, value.dtype), shape=shape)

    if group == 1:
        return reader.moved(kernel, (1, 0, *range(2, len(kernel.shape))))
    turned = reader.moved(viewed(kernel, group, out // group, inner, *space), (0, 2, 1, *range(3, 3 + len(space))))
    return viewed(turned, group * inner, out // group, *space)


RULES: Mapping[str, Rule] = {
    **{name: _plain(op) for name, op in {
        "add": "Add", "sub": "Sub", "div": "Div", "mul": "Mul", "min": "Min", "max": "Max", "pow": "Pow", "exp": "Exp",
        "log": "Log", "sqrt": "Sqrt", "tanh": "Tanh", "logistic": "Sigmoid", "neg": "Neg", "abs": "Abs", "erf": "Erf",
    }.items()},
    "rsqrt": lambda reader, eqn, x: reader.node("Reciprocal", [reader.node("Sqrt", [x], x)], x),
    "erfc": _erfc, "integer_pow": _power, "square": _power,
    "reduce_sum": _reduce("ReduceSum"), "reduce_max": _reduce("ReduceMax"), "reduce_min": _reduce("ReduceMin"),
    "reshape": _reshape, "broadcast_in_dim": _reshape, "squeeze": _reshape, "expand_dims": _reshape,
    "transpose": lambda reader, eqn, x: reader.moved(x, eqn.params["permutation"]),
    "rev": lambda reader, eqn, x: replace(x, flipped=x.flipped ^ set(eqn.params["dimensions"])),
    "concatenate": _concatenate, "reduce_window_max": _max_pool,
    "dot_general": _dot, "conv_general_dilated": _conv, "scan": scan,
}  # fmt: skip
