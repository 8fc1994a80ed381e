"""One rule for each primitive of JAX: the nodes of the neutral graph that compute the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from isobit.errors import ModelError
from isobit_jax.flattening import Step, Value
from isobit_jax.patterns import without_ones

if TYPE_CHECKING:
    from isobit_jax.reading import Reader

Rule = Callable[["Reader", Step], None]


def _plain(op: str) -> Rule:
    return lambda reader, step: reader.add(op, [reader.name(value) for value in step.inputs], step.outputs[0])


def _add(reader: Reader, step: Step) -> None:
    """One number a channel added to a convolution is its bias."""
    for total, bias in (step.inputs, step.inputs[::-1]):
        vector, channels = without_ones(bias), step.outputs[0].shape[1:2]
        of_channels = vector.shape == channels and bias.padded == (*channels, *(1,) * (len(step.outputs[0].shape) - 2))
        convolved = total.step is not None and total.step.primitive == "conv_general_dilated"
        if convolved and of_channels and reader.give_bias(total, vector, step.outputs[0]):
            return None
    return _plain("Add")(reader, step)


def _rsqrt(reader: Reader, step: Step) -> None:
    shape: Any = tuple(n if isinstance(n, int) else None for n in step.outputs[0].shape)
    reader.add("Reciprocal", [reader.between("Sqrt", [reader.name(step.inputs[0])], shape)], step.outputs[0])


def _power(reader: Reader, step: Step) -> None:
    exponent = reader.constant(np.asarray(step.params.get("y", 2), np.float32))
    reader.add("Pow", [reader.name(step.inputs[0]), exponent], step.outputs[0])


def _max(reader: Reader, step: Step) -> None:
    zero = next((v for v in step.inputs if v.literal is not None and not np.any(v.literal)), None)
    if zero is None:
        return _plain("Max")(reader, step)
    x = next(value for value in step.inputs if value is not zero)
    return reader.add("Relu", [reader.name(x)], step.outputs[0])


def _reduce(op: str) -> Rule:
    return lambda reader, step: reader.add(
        op, [reader.name(step.inputs[0])], step.outputs[0], axes=tuple(step.params["axes"]), keepdims=0
    )


# --- shapes ----------------------------------------------------------------------------------------------------------


def _reshape(reader: Reader, step: Step) -> None:
    """Axes of size 1 in front change nothing for a reader that broadcasts, which every reader of a vector does."""
    source, result = step.inputs[0], step.outputs[0]
    if (
        source.padded == result.padded
        and reader.name(source) in reader.constants
        and len(source.shape) < len(result.shape)
    ):
        return reader.alias(result, source)
    if source.core != result.core and step.primitive == "broadcast_in_dim":
        raise ModelError(
            f"a value of shape {source.shape} is repeated to {result.shape}: let operators broadcast instead"
        )
    shape = tuple(n if isinstance(n, int) else -1 for n in result.shape)
    return reader.add("Reshape", [reader.name(source)], result, shape=shape)


def _transpose(reader: Reader, step: Step) -> None:
    if _unflipped(step.inputs[0])[2]:
        return  # for `_conv` to read
    reader.add("Transpose", [reader.name(step.inputs[0])], step.outputs[0], perm=tuple(step.params["permutation"]))


def _concatenate(reader: Reader, step: Step) -> None:
    names = [reader.name(value) for value in step.inputs]
    reader.add("Concat", names, step.outputs[0], axis=int(step.params["dimension"]))


def _window(step: Step) -> dict[str, Any]:
    params = step.params
    if any(n != 1 for n in (*params["window_dimensions"][:2], *params["base_dilation"])) or len(params["padding"]) < 3:
        raise ModelError(f"{step.primitive} is read over the axes behind (batch, channels) alone")
    low, high = zip(*params["padding"][2:], strict=True)
    return {
        "kernel_shape": tuple(params["window_dimensions"][2:]), "strides": tuple(params["window_strides"][2:]),
        "dilations": tuple(params["window_dilation"][2:]), "pads": (*low, *high), "ceil_mode": 0,
    }  # fmt: skip


def _max_pool(reader: Reader, step: Step) -> None:
    reader.add("MaxPool", [reader.name(step.inputs[0])], step.outputs[0], **_window(step))


# --- products --------------------------------------------------------------------------------------------------------


def _dot(reader: Reader, step: Step) -> None:
    """A matrix product, the operands turned where they are contracted over another axis."""
    (left, right), (left_batch, right_batch) = step.params["dimension_numbers"]
    a, b = step.inputs
    batch = tuple(range(len(left_batch)))
    if len(left) != 1 or left_batch != batch or right_batch != batch or len(b.shape) != len(batch) + 2:
        raise ModelError(f"a product of {a.shape} and {b.shape} over axes {left} and {right} is no matrix product")
    if batch and len(a.shape) != len(batch) + 2:
        raise ModelError(f"a batched product of {a.shape} and {b.shape} is no product of matrices")
    rest = [axis for axis in range(len(a.shape)) if axis != left[0]]
    first = reader.moved(reader.name(a), (*rest, left[0]))
    free = next(axis for axis in range(len(batch), len(b.shape)) if axis != right[0])
    second = reader.moved(reader.name(b), (*batch, right[0], free))
    reader.add("MatMul", [first, second], step.outputs[0])


def _conv(reader: Reader, step: Step) -> None:
    """Conv, or ConvTranspose where the input is dilated; brought to (batch, channels, space) where it is not."""
    params, (x, kernel), output = step.params, step.inputs, step.outputs[0]
    lhs, rhs, out = params["dimension_numbers"]
    low, high = zip(*params["padding"], strict=True)
    settings: dict[str, Any] = {
        "group": params["feature_group_count"], "dilations": tuple(params["rhs_dilation"]),
        "kernel_shape": tuple(kernel.shape[axis] for axis in rhs[2:]),
    }  # fmt: skip
    op, strides = "Conv", tuple(params["window_strides"])
    data, weight = reader.moved(reader.name(x), tuple(lhs)), ""
    if any(n != 1 for n in params["lhs_dilation"]):
        source, order, flipped = _unflipped(kernel)
        if flipped != set(rhs[2:]):
            raise ModelError("a transposed convolution is read as jax.lax.conv_transpose(..., transpose_kernel=True)")
        op, strides = "ConvTranspose", tuple(params["lhs_dilation"])
        reach = [(k - 1) * d for k, d in zip(settings["kernel_shape"], settings["dilations"], strict=True)]
        low, high = (tuple(r - n for r, n in zip(reach, ends, strict=True)) for ends in (low, high))
        if any(n < 0 for n in high):
            settings["output_padding"] = tuple(max(0, -n) for n in high)
        high = tuple(max(0, n) for n in high)
        weight = _onnx_transposed(
            reader, reader.moved(reader.moved(reader.name(source), order), tuple(rhs)), settings["group"]
        )
    settings |= {"strides": strides, "pads": (*low, *high)}
    operands = [data, weight or reader.moved(reader.name(kernel), tuple(rhs))]
    if tuple(out) == tuple(range(len(out))):
        return reader.add(op, operands, output, **settings)
    shape: Any = tuple(n if isinstance(n, int) else None for n in (output.shape[axis] for axis in out))
    result = reader.between(op, operands, shape, **settings)
    return reader.add("Transpose", [result], output, perm=tuple(int(axis) for axis in np.argsort(out)))


def _unflipped(kernel: Value) -> tuple[Value, tuple[int, ...], set[int]]:
    """The array that `kernel` is a transposed and reversed form of, the order of axes, and those that are reversed."""
    if kernel.step is None or kernel.step.primitive not in ("rev", "transpose"):
        return kernel, tuple(range(len(kernel.shape))), set()
    source, order, flipped = _unflipped(kernel.step.inputs[0])
    if kernel.step.primitive == "rev":
        return source, order, flipped ^ set(kernel.step.params["dimensions"])
    moved = kernel.step.params["permutation"]
    return source, tuple(order[axis] for axis in moved), {moved.index(axis) for axis in flipped}


def _onnx_transposed(reader: Reader, kernel: str, group: int) -> str:
    """(out, in/group, *k) as ONNX has it, (in, out/group, *k)."""
    out, inner, *space = reader.shape(kernel)
    if group == 1:
        return reader.moved(kernel, (1, 0, *range(2, 2 + len(space))))
    parts = reader.between(
        "Reshape", [kernel], (group, out // group, inner, *space), shape=(group, out // group, inner, *space)
    )
    turned = reader.moved(parts, (0, 2, 1, *range(3, 3 + len(space))))
    whole = (group * inner, out // group, *space)
    return reader.between("Reshape", [turned], whole, shape=whole)


RULES: Mapping[str, Rule] = {
    **{name: _plain(op) for name, op in {
        "sub": "Sub", "div": "Div", "mul": "Mul", "min": "Min", "pow": "Pow", "exp": "Exp", "log": "Log",
        "sqrt": "Sqrt", "tanh": "Tanh", "logistic": "Sigmoid", "neg": "Neg", "abs": "Abs", "erf": "Erf",
    }.items()},
    "add": _add, "max": _max, "rsqrt": _rsqrt, "integer_pow": _power, "square": _power,
    "reduce_sum": _reduce("ReduceSum"), "reduce_max": _reduce("ReduceMax"), "reduce_min": _reduce("ReduceMin"),
    "reshape": _reshape, "broadcast_in_dim": _reshape, "squeeze": _reshape, "expand_dims": _reshape,
    "transpose": _transpose, "concatenate": _concatenate, "reduce_window_max": _max_pool,
    "rev": lambda reader, step: None, "dot_general": _dot, "conv_general_dilated": _conv,
}  # fmt: skip
