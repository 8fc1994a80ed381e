"""Convolutions, pooling, padding, resizing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from isobit.errors import ModelError
from isobit.graph import Layout, Permute, View
from isobit_tensorflow.layers import GroupedConv2DTranspose
from isobit_tensorflow.read.call import Call, Rule
from isobit_tensorflow.read.emitter import Size, Value
from isobit_tensorflow.read.parameters import is_parameter
from isobit_tensorflow.read.rules.activations import activate
from isobit_tensorflow.read.rules.low_rank import has_adapter, with_adapter


def channels_first(call: Call, value: Value) -> Value:
    """The value as the graph's convolutions read it, whatever the layer's data format."""
    if call.setting("data_format", "channels_last") == "channels_first":
        return call.emitter.plain(value)
    return call.emitter.first(value)


def _spatial(call: Call, value: Value) -> tuple[tuple[Size, ...], bool]:
    """Sizes of space, and whether the channels are last."""
    last = call.setting("data_format", "channels_last") != "channels_first"
    return (value.shape[1:-1] if last else value.shape[2:]), last


def _emit(
    call: Call, op: str, name: str, inputs: Sequence[Any], channels: Size, sizes: Sequence[Size], **attributes: Any
) -> Value:
    x: Value = inputs[0]
    _, last = _spatial(call, x)
    shape = (x.shape[0], *sizes, channels) if last else (x.shape[0], channels, *sizes)
    return call.emitter.emit(op, name, inputs, shape, x.dtype, last, **attributes)


def _channels(call: Call, value: Value) -> int:
    _, last = _spatial(call, value)
    channels = value.shape[-1] if last else value.shape[1]
    if channels is None:
        raise ModelError(f"{call.name!r}: the number of channels is not known")
    return channels


def each(value: Any, count: int) -> tuple[int, ...]:
    """One number for each spatial axis."""
    return tuple(int(n) for n in value) if isinstance(value, Sequence) else (int(value),) * count


def _window(
    padding: str, sizes: Sequence[Size], kernel: tuple[int, ...], strides: tuple[int, ...], dilations: tuple[int, ...]
) -> tuple[dict[str, Any], list[Size]]:
    """Padding attributes, and the sizes that come out."""
    count = len(kernel)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    out: list[Size]
    if padding == "same":
        out = [None if n is None else -(-n // s) for n, s in zip(sizes, strides, strict=True)]
        return {"auto_pad": "SAME_UPPER"}, out
    begin = [r - 1 for r in reach] if padding == "causal" else [0] * count
    out = [None if n is None else (n + b - r) // s + 1 for n, b, r, s in zip(sizes, begin, reach, strides, strict=True)]
    return {"pads": (*begin, *[0] * count)}, out


def _bias(call: Call) -> list[str]:
    layer = call.operation
    return [call.emitter.weight(layer.bias, path=f"{call.name}/bias")] if layer.use_bias else []


def _convolve(
    call: Call, name: str, x: Value, weight: str, bias: list[str], channels: int, group: int, strides: Any
) -> Value:
    layer = call.operation
    kernel = call.emitter.weights[weight].shape[2:]
    sizes, _ = _spatial(call, x)
    strides = each(strides, len(kernel))
    dilations = each(layer.dilation_rate, len(kernel))
    pads, out = _window(layer.padding, sizes, kernel, strides, dilations)
    attributes = {"group": group, "kernel_shape": kernel, "strides": strides, "dilations": dilations, **pads}
    return _emit(call, "Conv", name, [channels_first(call, x), weight, *bias], channels, out, **attributes)


def _conv(call: Call) -> Value:
    layer = call.operation
    count = layer.rank
    layout = (Permute((count + 1, count, *range(count))),)
    if has_adapter(layer) and layer.groups > 1:
        raise ModelError(f"{call.name!r}: LoRA of a convolution with groups is one kernel, and no layers of its own")

    def apply(name: str, x: Value, kernel: Any, is_whole: bool) -> Value:
        weight = call.emitter.weight(kernel, layout, f"{name}/kernel")
        bias = _bias(call) if is_whole else []
        return _convolve(call, name, x, weight, bias, int(kernel.shape[-1]), layer.groups, layer.strides)

    def up(name: str, x: Value, kernel: Any, _: bool) -> Value:
        rank, filters = kernel.shape
        wide: Layout = (Permute((1, 0)), View((filters, rank, *(1,) * count), (filters, rank)))
        inputs = [channels_first(call, x), call.emitter.weight(kernel, wide, f"{name}/kernel")]
        once = (1,) * count
        geometry = {"group": 1, "kernel_shape": once, "strides": once, "dilations": once, "pads": (0,) * (2 * count)}
        return _emit(call, "Conv", name, inputs, filters, _spatial(call, x)[0], **geometry)

    result = with_adapter(call, apply, up)
    return activate(call.reader, layer.activation, result, call.name)


def _depthwise_weight(call: Call, kernel: Any, path: str) -> str:
    """(*kernel, channels, multiplier) to (channels * multiplier, 1, *kernel)."""
    *sizes, channels, multiplier = kernel.shape
    count = len(sizes)
    layout: Layout = (
        Permute((count, count + 1, *range(count))),
        View((channels * multiplier, 1, *sizes), (channels, multiplier, *sizes)),
    )
    return call.emitter.weight(kernel, layout, path)


def _depthwise(call: Call) -> Value:
    layer, x = call.operation, call.x
    weight = _depthwise_weight(call, layer.kernel, f"{call.name}/kernel")
    channels = _channels(call, x)
    out = channels * layer.depth_multiplier
    result = _convolve(call, call.name, x, weight, _bias(call), out, channels, layer.strides)
    return activate(call.reader, layer.activation, result, call.name)


def _separable(call: Call) -> Value:
    """Its two convolutions: the depthwise one, then the pointwise one with the bias."""
    layer, x, e = call.operation, call.x, call.emitter
    weight = _depthwise_weight(call, layer.depthwise_kernel, f"{call.name}/depthwise_kernel")
    channels = _channels(call, x)
    inner = channels * layer.depth_multiplier
    x = _convolve(call, f"{call.name}/depthwise", x, weight, [], inner, channels, layer.strides)
    count = layer.rank
    layout = (Permute((count + 1, count, *range(count))),)
    point = e.weight(layer.pointwise_kernel, layout, f"{call.name}/pointwise_kernel")
    sizes, _ = _spatial(call, x)
    attributes = {"group": 1, "kernel_shape": (1,) * count, "strides": (1,) * count, "dilations": (1,) * count}
    inputs = [channels_first(call, x), point, *_bias(call)]
    result = _emit(call, "Conv", call.name, inputs, layer.filters, sizes, **attributes, pads=(0,) * 2 * count)
    return activate(call.reader, layer.activation, result, call.name)


def _conv_operation(call: Call) -> Value | None:
    """``keras.ops.conv`` by a parameter, or by what a layer of the user's computes of parameters."""
    x, kernel = call.argument(0), call.argument(1)
    if not isinstance(x, Value) or not is_parameter(kernel):
        return None
    count = len(kernel.shape) - 2
    weight = call.emitter.weight(kernel, (Permute((count + 1, count, *range(count))),), f"{call.name}/kernel")
    groups = _channels(call, x) // int(kernel.shape[-2])
    return _convolve(call, call.name, x, weight, [], int(kernel.shape[-1]), groups, call.setting("strides"))


def _depthwise_operation(call: Call) -> Value | None:
    """``keras.ops.depthwise_conv``, as `_conv_operation`."""
    x, kernel = call.argument(0), call.argument(1)
    if not isinstance(x, Value) or not is_parameter(kernel):
        return None
    weight, channels = _depthwise_weight(call, kernel, f"{call.name}/kernel"), _channels(call, x)
    out = channels * int(kernel.shape[-1])
    return _convolve(call, call.name, x, weight, [], out, channels, call.setting("strides"))


def _conv_transpose(call: Call) -> Value:
    """Kernel (*kernel, out, in); TensorFlow crops what 'same' has too much, the smaller half in front."""
    layer, x = call.operation, call.x
    count = layer.rank
    layout = (Permute((count, count + 1, *range(count))),)
    weight = call.emitter.weight(layer.kernel, layout, f"{call.name}/kernel")
    kernel, strides = each(layer.kernel_size, count), each(layer.strides, count)
    dilations = each(layer.dilation_rate, count)
    extra = None if layer.output_padding is None else each(layer.output_padding, count)
    begin, end, grown = [], [], []
    sizes, _ = _spatial(call, x)
    out: list[Size] = []
    for axis in range(count):
        reach, stride = (kernel[axis] - 1) * dilations[axis] + 1, strides[axis]
        before, cut = _crop(layer.padding, reach, stride, None if extra is None else extra[axis])
        begin.append(before)
        end.append(max(cut - before, 0))
        grown.append(max(-cut, 0))
        size = sizes[axis]
        out.append(None if size is None else (size - 1) * stride + reach - cut)
    attributes: dict[str, Any] = {
        "group": getattr(layer, "groups", 1), "kernel_shape": kernel, "strides": strides, "dilations": dilations,
        "pads": (*begin, *end),
    }  # fmt: skip
    if any(grown):
        attributes["output_padding"] = tuple(grown)
    inputs = [channels_first(call, x), weight, *_bias(call)]
    result = _emit(call, "ConvTranspose", call.name, inputs, layer.filters, out, **attributes)
    return activate(call.reader, layer.activation, result, call.name)


def _crop(padding: str, reach: int, stride: int, extra: int | None) -> tuple[int, int]:
    """Values cut in front, and cut in all (negative: added behind) from ``(n - 1) * stride + reach``."""
    if padding == "valid":
        return 0, -(max(stride - reach, 0) if extra is None else extra)
    cut = reach - stride if extra is None else 2 * (reach // 2) - extra
    return max(cut, 0) // 2, cut


def _pool(op: str) -> Rule:
    def rule(call: Call) -> Value:
        layer, x = call.operation, call.x
        sizes, _ = _spatial(call, x)
        kernel = each(layer.pool_size, len(sizes))
        strides = kernel if layer.strides is None else each(layer.strides, len(sizes))
        ones = (1,) * len(sizes)
        pads, out = _window(layer.padding, sizes, kernel, strides, ones)
        attributes: dict[str, Any] = {"kernel_shape": kernel, "strides": strides, "ceil_mode": 0, **pads}
        attributes |= {"dilations": ones} if op == "MaxPool" else {"count_include_pad": 0}
        return _emit(call, op, call.name, [channels_first(call, x)], _channels(call, x), out, **attributes)

    return rule


def _global_pool(op: str, reduction: str) -> Rule:
    """Over all space; of a sequence whose axes nothing has turned it is a mean over axis 1."""

    def rule(call: Call) -> Value | None:
        layer, x, e = call.operation, call.x, call.emitter
        if call.kwargs.get("mask") is not None:
            return None  # a mean over the steps that count, which the layer's own operations say
        sizes, last = _spatial(call, x)
        channels, keep = _channels(call, x), int(layer.keepdims)
        if x.rank == 3 and last and not x.last:
            shape = (x.shape[0], 1, channels) if keep else (x.shape[0], channels)
            return e.emit(reduction, call.name, [x], shape, x.dtype, axes=(1,), keepdims=keep)
        source = channels_first(call, x)
        if not keep:
            return e.emit(op, call.name, [source], (x.shape[0], channels), x.dtype, keepdims=0)
        return _emit(call, op, call.name, [source], channels, (1,) * len(sizes), keepdims=1)

    return rule


def _pairs(value: Any, count: int) -> list[tuple[int, int]]:
    return [(int(a), int(b)) for a, b in ([value] if count == 1 and not isinstance(value[0], Sequence) else value)]


def _zero_padding(call: Call) -> Value:
    layer, x = call.operation, call.x
    sizes, _ = _spatial(call, x)
    pairs = _pairs(layer.padding, len(sizes))
    out = [None if n is None else n + a + b for n, (a, b) in zip(sizes, pairs, strict=True)]
    pads = (0, 0, *(a for a, _ in pairs), 0, 0, *(b for _, b in pairs))
    source = channels_first(call, x)
    return _emit(call, "Pad", call.name, [source], _channels(call, x), out, pads=pads, mode="constant")


def _cropping(call: Call) -> Value | None:
    layer, x = call.operation, call.x
    sizes, _ = _spatial(call, x)
    pairs = _pairs(layer.cropping, len(sizes))
    out = [None if n is None else n - a - b for n, (a, b) in zip(sizes, pairs, strict=True)]
    cut = [(axis, a, -b if b else (1 << 63) - 1) for axis, (a, b) in enumerate(pairs, 2) if a or b]
    if not cut:
        return x
    axes, starts, ends = (tuple(part) for part in zip(*cut, strict=True))
    attributes = {"axes": axes, "starts": starts, "ends": ends, "steps": (1,) * len(cut)}
    return _emit(call, "Slice", call.name, [channels_first(call, x)], _channels(call, x), out, **attributes)


def _upsampling(call: Call) -> Value:
    layer, x = call.operation, call.x
    sizes, _ = _spatial(call, x)
    factors = each(layer.size, len(sizes))
    out = [None if n is None else n * f for n, f in zip(sizes, factors, strict=True)]
    mode = getattr(layer, "interpolation", "nearest")
    if mode == "nearest":
        attributes = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    elif mode == "bilinear":
        attributes = {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"}
    else:
        raise ModelError(f"{call.name!r}: interpolation {mode!r} is not read; nearest and bilinear are")
    scales = (1.0, 1.0, *(float(f) for f in factors))
    return _emit(
        call, "Resize", call.name, [channels_first(call, x)], _channels(call, x), out, scales=scales, **attributes
    )


def _pooling_layers(kind: str) -> list[type]:
    return [getattr(keras.layers, f"{kind}{n}D") for n in (1, 2, 3)]


_RULES: Sequence[tuple[Callable[[Call], Any], list[type]]] = (
    (_conv, _pooling_layers("Conv")),
    (
        _conv_transpose,
        [
            keras.layers.Conv1DTranspose,
            keras.layers.Conv2DTranspose,
            keras.layers.Conv3DTranspose,
            GroupedConv2DTranspose,
        ],
    ),
    (_depthwise, [keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D]),
    (_separable, [keras.layers.SeparableConv1D, keras.layers.SeparableConv2D]),
    (_pool("MaxPool"), _pooling_layers("MaxPooling")),
    (_pool("AveragePool"), _pooling_layers("AveragePooling")),
    (_global_pool("GlobalAveragePool", "ReduceMean"), _pooling_layers("GlobalAveragePooling")),
    (_global_pool("GlobalMaxPool", "ReduceMax"), _pooling_layers("GlobalMaxPooling")),
    (_zero_padding, _pooling_layers("ZeroPadding")),
    (_cropping, _pooling_layers("Cropping")),
    (_upsampling, _pooling_layers("UpSampling")),
)

LAYERS: Mapping[type, Rule] = {kind: rule for rule, kinds in _RULES for kind in kinds}

OPERATIONS: Mapping[str, Callable[[Call], Any]] = {
    "Conv": _conv_operation,
    "DepthwiseConv": _depthwise_operation,
    "MaxPool": _pool("MaxPool"),
    "AveragePool": _pool("AveragePool"),
}
