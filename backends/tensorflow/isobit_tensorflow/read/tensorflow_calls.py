"""Functions of TensorFlow that are called with symbolic tensors: what each is in `keras.ops`.

A layer that people write often computes with ``tf.nn.relu`` or ``tf.reduce_mean``, which refuse symbolic tensors.
While a layer is opened, such a call is the operation of `keras.ops` that does the same; a function without one is an
operation of its own, which runs as TensorFlow runs it. TensorFlow asks its dispatchers where a function does not take
a tensor.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from isobit_tensorflow.kernels.tensorflow_function import TensorFlowFunction, is_pure
from isobit_tensorflow.read.spectrum_calls import SPECTRA


def _matmul(a: Any, b: Any, transpose_a: bool = False, transpose_b: bool = False) -> Any:
    return ops.matmul(_turned(a) if transpose_a else a, _turned(b) if transpose_b else b)


def _turned(x: Any) -> Any:
    return ops.swapaxes(x, -1, -2)


def _split(value: Any, num_or_size_splits: Any, axis: int = 0) -> Any:
    if isinstance(num_or_size_splits, int):
        return ops.split(value, num_or_size_splits, axis)
    if not isinstance(num_or_size_splits, list | tuple) or not all(isinstance(n, int) for n in num_or_size_splits):
        return NotImplemented
    sizes = list(num_or_size_splits)
    if -1 in sizes:  # what the others leave
        whole = value.shape[axis]
        if whole is None:
            return NotImplemented
        sizes[sizes.index(-1)] = whole - sum(sizes) - 1
    if len(sizes) == 1:
        return [value]
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
    return ops.split(value, ends, axis)


def _transpose(a: Any, perm: Any = None) -> Any:
    return ops.transpose(a, None if perm is None else tuple(int(axis) for axis in perm))


def _unstack(value: Any, num: int | None = None, axis: int = 0) -> Any:
    return ops.unstack(value, num, axis)


def _gather(params: Any, indices: Any, axis: int = 0) -> Any:
    return ops.take(params, indices, axis)


def _reduced(operation: Callable[..., Any]) -> Callable[..., Any]:
    def reduce(input_tensor: Any, axis: Any = None, keepdims: bool = False) -> Any:
        return operation(input_tensor, axis=tuple(axis) if isinstance(axis, list) else axis, keepdims=keepdims)

    return reduce


def _convolved(
    operation: Callable[..., Any], input: Any, filters: Any, strides: Any, padding: Any, dilations: Any
) -> Any:
    if not isinstance(padding, str):  # amounts for each side
        return NotImplemented
    return operation(
        input, filters, _inner(strides), padding.lower(), None, 1 if dilations is None else _inner(dilations)
    )


def _conv(input: Any, filters: Any, strides: Any, padding: Any, dilations: Any = None) -> Any:
    return _convolved(ops.conv, input, filters, strides, padding, dilations)


def _depthwise(input: Any, filter: Any, strides: Any, padding: Any, dilations: Any = None) -> Any:
    return _convolved(ops.depthwise_conv, input, filter, strides, padding, dilations)


def _pool(operation: Callable[..., Any]) -> Callable[..., Any]:
    def pool(input: Any, ksize: Any, strides: Any, padding: Any) -> Any:
        if not isinstance(padding, str):
            return NotImplemented
        return operation(input, _inner(ksize), _inner(strides), padding.lower())

    return pool


def _inner(sizes: Any) -> Any:
    """Numbers of an image's two axes, which TensorFlow also takes with those of batch and channels around them."""
    if isinstance(sizes, int):
        return sizes
    sizes = tuple(sizes[1:-1] if len(sizes) == 4 else sizes)
    return sizes[0] if len(sizes) == 1 else sizes


def _arg(operation: Callable[..., Any]) -> Callable[..., Any]:
    def arg(input: Any, axis: int = 0, output_type: Any = tf.int64) -> Any:
        return ops.cast(operation(input, axis), tf.as_dtype(output_type).name)

    return arg


def _normalize(x: Any, axis: Any = None, epsilon: float = 1e-12) -> Any:
    squares = ops.sum(ops.square(x), axis=tuple(axis) if isinstance(axis, list) else axis, keepdims=True)
    return x * ops.rsqrt(ops.maximum(squares, epsilon))


def _norm(tensor: Any, ord: Any = "euclidean", axis: Any = None, keepdims: Any = None) -> Any:
    if axis is None and ord != "euclidean":  # all values as one vector: Keras takes a matrix as one
        return NotImplemented
    axes = tuple(axis) if isinstance(axis, list) else axis
    return ops.norm(tensor, None if ord == "euclidean" else ord, axes, bool(keepdims))


def _unary(operation: Callable[..., Any]) -> Callable[..., Any]:
    def call(**given: Any) -> Any:
        (x,) = given.values()
        return operation(x)

    return call


def _binary(operation: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, y: operation(_as_tensor(x, y), _as_tensor(y, x))


def _as_tensor(value: Any, other: Any) -> Any:
    """A list as a tensor in the type of the other operand, as TensorFlow takes it."""
    return tf.convert_to_tensor(value, other.dtype) if isinstance(value, list | tuple) else value


#: By the function's name in TensorFlow, with ``_v2`` where there was another before; arguments as it has them. One that
#: does something else than what is asked gives NotImplemented.
#: NotImplemented for what it has no counterpart of.
_KNOWN: Mapping[str, Callable[..., Any]] = {
    **{name: _unary(getattr(ops, name)) for name in (
        "ceil", "cos", "elu", "erf", "exp", "floor", "log", "log1p", "negative", "reciprocal", "relu", "relu6", "rsqrt",
        "selu", "sigmoid", "sign", "sin", "softplus", "softsign", "sqrt", "square", "stop_gradient", "tanh",
    )},
    **{name: _binary(getattr(ops, name)) for name in (
        "add", "subtract", "multiply", "divide", "maximum", "minimum", "greater", "greater_equal", "less", "less_equal",
        "equal", "not_equal", "logical_and", "logical_or",
    )},
    **SPECTRA, "norm_v2": _norm,
    "real_div": _binary(ops.true_divide), "truediv": _binary(ops.true_divide), "pow": _binary(ops.power),
    "squared_difference": _binary(lambda x, y: ops.square(x - y)), "logical_not": _unary(ops.logical_not),
    "neg": _unary(ops.negative), "identity": _unary(lambda x: x), "swish": lambda features: ops.silu(features),
    "gelu": lambda features, approximate=False: ops.gelu(features, approximate),
    "leaky_relu": lambda features, alpha=0.2: ops.leaky_relu(features, alpha),
    "softmax_v2": lambda logits, axis=-1: ops.softmax(logits, axis),
    "log_softmax_v2": lambda logits, axis=-1: ops.log_softmax(logits, axis),
    "bias_add": lambda value, bias: ops.add(value, _as_tensor(bias, value)), "l2_normalize": _normalize,
    "matmul": _matmul,
    "reshape": lambda tensor, shape: ops.reshape(tensor, shape), "transpose_v2": _transpose,
    "expand_dims_v2": lambda input, axis: ops.expand_dims(input, axis),
    "squeeze_v2": lambda input, axis=None: ops.squeeze(input, tuple(axis) if isinstance(axis, list) else axis),
    "concat": lambda values, axis: ops.concatenate(values, axis), "split": _split,
    "stack": lambda values, axis=0: ops.stack(values, axis), "unstack": _unstack,
    "tile": lambda input, multiples: ops.tile(input, tuple(multiples)), "gather_v2": _gather,
    "cast": lambda x, dtype: ops.cast(x, tf.as_dtype(dtype).name), "shape_v2": lambda input: ops.shape(input),
    "rank": lambda input: len(input.shape), "where_v2": lambda condition, x, y: ops.where(condition, x, y),
    "zeros_like_v2": lambda input: ops.zeros_like(input), "ones_like_v2": lambda input: ops.ones_like(input),
    "broadcast_to": lambda input, shape: ops.broadcast_to(input, tuple(shape)),
    "clip_by_value": lambda t, clip_value_min, clip_value_max: ops.clip(t, clip_value_min, clip_value_max),
    "argmax_v2": _arg(ops.argmax), "argmin_v2": _arg(ops.argmin),
    "reverse": lambda tensor, axis: ops.flip(tensor, axis),
    "reduce_mean": _reduced(ops.mean), "reduce_sum": _reduced(ops.sum), "reduce_max": _reduced(ops.max),
    "reduce_min": _reduced(ops.min), "reduce_prod": _reduced(ops.prod),
    "conv2d_v2": _conv, "depthwise_conv2d_v2": _depthwise, "max_pool2d": _pool(ops.max_pool),
    "avg_pool2d": _pool(ops.average_pool),
}  # fmt: skip

#: Defaults of parameters that say no more than None does.
_NOTHING = (None, inspect.Parameter.empty)
_is_opening: ContextVar[bool] = ContextVar("is_opening", default=False)


class _SymbolicCalls(tf.__internal__.dispatch.GlobalOpDispatcher):  # type: ignore[misc]
    """Asked by TensorFlow for every function that does not take an argument; answers while a layer is opened."""

    def handle(self, op: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What the call comes to, a symbolic tensor, or that nothing is known of it."""
        if not _is_opening.get() or not any(map(_is_symbolic, keras.tree.flatten((args, dict(kwargs))))):
            return self.NOT_SUPPORTED
        name = op.__name__
        newer = getattr(sys.modules[op.__module__], f"{name}_v2", None)
        if newer is not None and newer.__module__ == op.__module__:
            return self.NOT_SUPPORTED  # the function that people call is around it, and is asked next
        if name == "einsum":
            return ops.einsum(*args)
        signature = inspect.signature(op)
        bound = {key: value for key, value in signature.bind(*args, **kwargs).arguments.items() if key != "name"}
        unset = {key for key, parameter in signature.parameters.items() if parameter.default in _NOTHING}
        given = {key: value for key, value in bound.items() if value is not None or key not in unset}
        known = _KNOWN.get(name)
        if known is not None and _takes(known, given):
            result = known(**given)
            if result is not NotImplemented:
                return result
        return TensorFlowFunction(f"{op.__module__}:{name}")(**given) if is_pure(op) else self.NOT_SUPPORTED


def _is_symbolic(leaf: Any) -> bool:
    return isinstance(leaf, keras.KerasTensor)


def _takes(function: Callable[..., Any], given: Mapping[str, Any]) -> bool:
    """Whether a function takes these arguments and no fewer: others of TensorFlow's change what is computed."""
    signature = inspect.signature(function)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values()):
        return len(given) == 1
    try:
        signature.bind(**given)
    except TypeError:
        return False
    return True


_SymbolicCalls().register()


@contextmanager
def tensorflow_calls() -> Iterator[None]:
    """Functions of TensorFlow take symbolic tensors."""
    token = _is_opening.set(True)
    try:
        yield
    finally:
        _is_opening.reset(token)
