"""Kernels with sliding windows: convolutions, pooling, resizing. All work with the channels last."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from isobit.errors import ModelError
from isobit.graph import Node
from isobit_tensorflow.kernels.operands import Constant, Operand, numbers


def _overhang(size: Any, kernel: int, stride: int, dilation: int) -> Any:
    """By how much the last of the windows that ``SAME_UPPER`` has would reach beyond `size`; negative: it does not."""
    return (-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size


def same_padding(sizes: Sequence[Any], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> Any:
    """Begin and end pads of ``SAME_UPPER`` for sizes that are only known when the kernel runs."""
    pads = []
    for size, k, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = tf.maximum(_overhang(size, k, stride, dilation), 0)
        pads.append((total // 2, total - total // 2))
    return pads


def _pads(node: Node, x: tf.Tensor, kernel: Sequence[int]) -> tuple[list[tuple[Any, Any]], bool]:
    """(begin, end) for each spatial axis, and whether any of them may differ from 0."""
    a, count = node.attributes, len(kernel)
    if "auto_pad" in a:
        if a["auto_pad"] != "SAME_UPPER":
            raise ModelError(f"node {node.name!r}: auto_pad {a['auto_pad']!r} is not supported")
        sizes = [tf.shape(x)[1 + axis] for axis in range(count)]
        return same_padding(sizes, kernel, a["strides"], a.get("dilations", (1,) * count)), True
    flat = numbers(a.get("pads", (0,) * 2 * count))
    return list(zip(flat[:count], flat[count:], strict=True)), any(flat)


def _padded(node: Node, x: tf.Tensor, kernel: Sequence[int], fill: float = 0.0) -> tf.Tensor:
    pads, needed = _pads(node, x, kernel)
    if not needed:
        return x
    return tf.pad(x, [(0, 0), *pads, (0, 0)], constant_values=tf.cast(fill, x.dtype))


def _is_same(x: tf.Tensor, pads: Sequence[tuple[int, int]], kernel: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether TensorFlow's own "SAME" padding comes to these pads, for a known size and no dilation."""
    for size, pair, k, stride in zip(x.shape[1:-1], pads, kernel, strides, strict=True):
        total = None if size is None else max(_overhang(size, k, stride, 1), 0)
        if total is None or pair != (total // 2, total - total // 2):
            return False
    return True


def _conv(node: Node, x: Operand, weight: Constant, bias: Constant | None = None) -> Operand:
    """Weight (out, in/groups, *kernel)."""
    a, value = node.attributes, x.channels_last()
    count, group = x.rank - 2, int(a.get("group", 1))
    kernel = numbers(a["kernel_shape"])
    strides, dilations = numbers(a["strides"]), numbers(a["dilations"])
    pads, needed = _pads(node, value, kernel)
    if set(kernel) == {1} and max(strides) > 1:
        # oneDNN's gradient by the filters of such a layer writes beyond its memory where channels do not fill a block
        # of AVX-512 (TensorFlow 2.21): the process ends, or "could not create a primitive descriptor". So values that
        # no filter meets are left out before it.
        value = tf.pad(value, [(0, 0), *pads, (0, 0)]) if needed else value
        value = value[(slice(None), *(slice(None, None, stride) for stride in strides))]
        needed, strides = False, (1,) * count
    filters = tf.cast(weight.form((*range(2, count + 2), 1, 0)), value.dtype)
    plain = count == 2 and set(dilations) == {1} and all(isinstance(n, int) for pair in pads for n in pair)
    depthwise = group == value.shape[-1] > 1
    padding: Any = "VALID"
    # Faster than a padded copy. The explicit padding of a depthwise convolution is lost where TensorFlow fuses it with
    # bias and ReLU by oneDNN, its default on CPUs with VNNI, and the process ends.
    if needed and plain and depthwise and len(set(strides)) == 1 and _is_same(value, pads, kernel, strides):
        padding = "SAME"
    elif needed and plain and group == 1:
        padding = [[0, 0], *(list(pair) for pair in pads), [0, 0]]
    elif needed:
        value = tf.pad(value, [(0, 0), *pads, (0, 0)])
    if depthwise:
        result = _depthwise(value, filters, strides, dilations, padding)
    elif plain and group == 1:
        result = tf.nn.conv2d(value, filters, strides, padding)
    else:
        parts = zip(tf.split(value, group, -1), tf.split(filters, group, -1), strict=True)
        result = tf.concat([tf.nn.convolution(v, f, strides, "VALID", dilations=dilations) for v, f in parts], -1)
    return Operand(_biased(result, bias), last=True)


def _depthwise(
    x: tf.Tensor, filters: tf.Tensor, strides: Sequence[int], dilations: Sequence[int], padding: str
) -> tf.Tensor:
    """Filters (*kernel, 1, channels * multiplier), the multiples of a channel side by side.

    "SAME" padding is for planes with one stride and no dilation.
    """
    channels, spatial = x.shape[-1], filters.shape[:-2]
    filters = tf.reshape(filters, (*spatial, channels, filters.shape[-1] // channels))
    if len(spatial) == 1:
        return _depthwise_planes(x[:, None], filters[None], (strides[0],) * 2, (1, *dilations), padding)[:, 0]
    if len(spatial) == 2:
        return _depthwise_planes(x, filters, strides, dilations, padding)
    pairs = zip(tf.split(x, channels, -1), tf.split(filters, channels, -2), strict=True)
    return tf.concat([tf.nn.convolution(v, f, strides, "VALID", dilations=dilations) for v, f in pairs], -1)


def _depthwise_planes(
    x: tf.Tensor, filters: tf.Tensor, strides: Sequence[int], dilations: Sequence[int], padding: str
) -> tf.Tensor:
    """TensorFlow has one stride for both axes, and none beside dilations: any other is cut out of the whole."""
    if len(set(strides)) > 1 or (max(dilations) > 1 and max(strides) > 1):
        whole = tf.nn.depthwise_conv2d(x, filters, (1, 1, 1, 1), "VALID", dilations=tuple(dilations))
        return whole[:, :: strides[0], :: strides[1]]
    return tf.nn.depthwise_conv2d(x, filters, (1, *strides, 1), padding, dilations=tuple(dilations))


def _biased(result: tf.Tensor, bias: Constant | None) -> tf.Tensor:
    return result if bias is None else tf.nn.bias_add(result, tf.cast(bias.canonical(), result.dtype))


def _conv_transpose(node: Node, x: Operand, weight: Constant, bias: Constant | None = None) -> Operand:
    """Weight (out, in/groups, *kernel): the whole stamp, then cropped by ``pads`` and grown by ``output_padding``."""
    a, value = node.attributes, x.channels_last()
    count, group = x.rank - 2, int(a.get("group", 1))
    kernel, strides, dilations = (numbers(a[key]) for key in ("kernel_shape", "strides", "dilations"))
    flat = numbers(a.get("pads", (0,) * 2 * count))
    extra = numbers(a.get("output_padding", (0,) * count))
    filters = tf.cast(weight.form((*range(2, count + 2), 0, 1)), value.dtype)  # (*kernel, out, in/groups)
    sizes = tf.shape(value)
    full = [(sizes[1 + i] - 1) * strides[i] + (kernel[i] - 1) * dilations[i] + 1 + extra[i] for i in range(count)]
    parts = []
    for v, f in zip(tf.split(value, group, -1), tf.split(filters, group, -2), strict=True):
        shape = tf.stack([sizes[0], *full, f.shape[-2]])
        parts.append(tf.nn.conv_transpose(v, f, shape, strides, "VALID", dilations=dilations))
    result = parts[0] if group == 1 else tf.concat(parts, -1)
    crop: list[Any] = [slice(None)]
    static_shape: list[Any] = [value.shape[0]]
    for i in range(count):
        reach = (kernel[i] - 1) * dilations[i] + 1 + extra[i] - flat[i] - flat[i + count]
        length = (sizes[1 + i] - 1) * strides[i] + reach
        crop.append(slice(flat[i], flat[i] + length))
        size = value.shape[1 + i]
        static_shape.append(None if size is None else (size - 1) * strides[i] + reach)
    result = result[tuple(crop)]
    result.set_shape((*static_shape, filters.shape[-2]))
    return Operand(_biased(result, bias), last=True)


def _max_pool(node: Node, x: Operand) -> Operand:
    kernel, strides, value = _window(node, x)
    dilations = numbers(node.attributes.get("dilations", (1,) * len(kernel)))
    value = _ceiled(node, _padded(node, value, kernel, value.dtype.min), kernel, value.dtype.min)
    return Operand(_pooled(value, kernel, "MAX", strides, dilations), last=True)


def _average_pool(node: Node, x: Operand) -> Operand:
    """The mean of each window, over the values inside the tensor unless the pads count too."""
    kernel, strides, value = _window(node, x)

    def pool(t: tf.Tensor) -> tf.Tensor:
        return _pooled(_ceiled(node, _padded(node, t, kernel), kernel, 0.0), kernel, "AVG", strides)

    result = pool(value)
    _, padded = _pads(node, value, kernel)
    if (padded and not node.attributes.get("count_include_pad")) or node.attributes.get("ceil_mode"):
        result = result / pool(tf.ones_like(value[:1, ..., :1]))
    return Operand(result, last=True)


def _pooled(
    x: tf.Tensor, kernel: Sequence[int], kind: str, strides: Sequence[int], dilations: Sequence[int] | None = None
) -> tf.Tensor:
    """TensorFlow does not jump over values: where the stride is larger than the window, all windows are cut."""
    steps = [1 if s > k or max(dilations or (1,)) > 1 else s for s, k in zip(strides, kernel, strict=True)]
    result = tf.nn.pool(x, kernel, kind, steps, "VALID", dilations=dilations)
    cut = [slice(None, None, s if step == 1 else 1) for s, step in zip(strides, steps, strict=True)]
    return result[(slice(None), *cut)] if any(item.step > 1 for item in cut) else result


def _ceiled(node: Node, x: tf.Tensor, kernel: Sequence[int], fill: float) -> tf.Tensor:
    """More padding at the end where a last window that is not full counts."""
    if not node.attributes.get("ceil_mode"):
        return x
    strides = node.attributes["strides"]
    dilations = node.attributes.get("dilations", (1,) * len(kernel))
    pads: list[Any] = [(0, 0)]
    for axis, (k, stride, dilation) in enumerate(zip(kernel, strides, dilations, strict=True), 1):
        rest = (tf.shape(x)[axis] - ((k - 1) * dilation + 1)) % stride
        pads.append((0, tf.where(rest > 0, stride - rest, 0)))
    return tf.pad(x, [*pads, (0, 0)], constant_values=tf.cast(fill, x.dtype))


def _window(node: Node, x: Operand) -> tuple[tuple[int, ...], tuple[int, ...], tf.Tensor]:
    return numbers(node.attributes["kernel_shape"]), numbers(node.attributes["strides"]), x.channels_last()


def _global(function: Callable[..., tf.Tensor]) -> Callable[[Node, Operand], Operand]:
    def kernel(node: Node, x: Operand) -> Operand:
        keep = bool(node.attributes.get("keepdims", 1))
        axes = range(1, x.rank - 1) if x.last else range(2, x.rank)
        return Operand(function(x.tensor, list(axes), keepdims=keep), last=x.last and keep)

    return kernel


def _resize(node: Node, x: Operand) -> Operand:
    """Nearest by whole factors, or bilinear with half pixel centres, as Keras resizes."""
    a, value = node.attributes, x.channels_last()
    factors = [float(n) for n in a["scales"]][2:]
    if a["mode"] == "nearest":
        for axis, factor in enumerate(factors, 1):
            value = tf.repeat(value, int(factor), axis)
        return Operand(value, last=True)
    shape = tf.shape(value)[1:-1] if None in value.shape[1:-1] else value.shape[1:-1]
    size = [shape[i] * int(factor) for i, factor in enumerate(factors)]
    return Operand(tf.cast(tf.image.resize(value, size, "bilinear"), value.dtype), last=True)


def _depth_to_space(node: Node, x: Operand) -> Operand:
    if node.attributes.get("mode", "DCR") != "DCR":
        raise ModelError(f"node {node.name!r}: DepthToSpace is known in mode DCR only")
    return Operand(tf.nn.depth_to_space(x.channels_last(), int(node.attributes["blocksize"])), last=True)


WINDOWS: Mapping[str, Callable[..., Any]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global(tf.reduce_mean),
    "GlobalMaxPool": _global(tf.reduce_max),
    "Resize": _resize,
    "DepthToSpace": _depth_to_space,
}
