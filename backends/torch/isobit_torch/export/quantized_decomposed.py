"""Encodings as calls of torch's ``quantized_decomposed`` operations, which ExecuTorch and other PT2E tools lower.

They are torch's own, registered by importing ``torch.ao.quantization.fx._decomposed``. Their reference multiplies by
the inverse of the scale, so an activation beside a tie may get the neighbouring integer; dequantizing is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.ao.quantization.fx._decomposed  # registers the operations
from torch import fx

from isobit.encodings import Encoding, PerChannel, PerTensor, QuantSpec
from isobit.errors import ModelError
from isobit.graph import Blocks, Layout, Permute, Site, View, to_canonical, to_native
from isobit_torch.program.convert import to_array
from isobit_torch.program.fx_nodes import aten
from isobit_torch.simulate.arithmetic import FLOAT_TYPES

_ops = torch.ops.quantized_decomposed
_CAST_ONLY = ("float16", "bfloat16")

#: Makes a constant: (what is appended to the name, value) to the node that reads it.
Constant = Callable[[str, torch.Tensor], fx.Node]


def quantized_activation(graph: fx.Graph, x: fx.Node, site: Site, encoding: Encoding, constant: Constant) -> fx.Node:
    """`x` to integers and back. Raises ModelError for a format without such a call."""
    spec = encoding.spec
    if spec.dtype in _CAST_ONLY:
        return _cast(graph, _cast(graph, x, FLOAT_TYPES[spec.dtype]), torch.float32)
    dtype = _stored_type(site, spec)
    if dtype == torch.int32 and spec.bits > 16:
        raise _refusal(site, spec, "an activation has at most 16 bits")
    numbers = (*_numbers(site, encoding, constant), spec.q_min, spec.q_max, dtype)
    per_tensor = isinstance(spec.granularity, PerTensor)
    quantize = _ops.quantize_per_tensor.default if per_tensor else _ops.quantize_per_channel.default
    dequantize = _ops.dequantize_per_tensor.default if per_tensor else _ops.dequantize_per_channel.default
    return graph.call_function(dequantize, (graph.call_function(quantize, (x, *numbers)), *numbers))


def dequantized_constant(
    graph: fx.Graph, value: torch.Tensor, layout: Layout, site: Site, encoding: Encoding, constant: Constant
) -> fx.Node:
    """The float value of a constant that is stored as integers. Raises ModelError for a format without such a call."""
    spec = encoding.spec
    if spec.dtype in _CAST_ONLY:
        return _cast(graph, constant("", value.detach().to(FLOAT_TYPES[spec.dtype])), torch.float32)
    dtype = _stored_type(site, spec)
    integers = encoding.quantize(to_canonical(to_array(value), layout))
    blocks = not isinstance(spec.granularity, PerTensor | PerChannel)
    if not blocks and all(isinstance(step, Permute | Blocks) for step in layout):  # the user's shape, and its axis
        integers, encoding, layout = to_native(integers, layout), _native_grid(encoding, layout), ()
    stored = constant("", torch.from_numpy(np.array(integers, order="C")).to(value.device, dtype))
    grid = (spec.q_min, spec.q_max, dtype)
    if blocks:
        arguments = (*_block_scales(site, encoding, integers.shape, constant), *grid)
        size = integers.shape[1] // encoding.scale.shape[1]
        result = graph.call_function(
            _ops.dequantize_per_channel_group.default, (stored, *arguments, size, torch.float32)
        )
    elif isinstance(spec.granularity, PerTensor):
        numbers = _numbers(site, encoding, constant)
        result = graph.call_function(_ops.dequantize_per_tensor.default, (stored, *numbers, *grid))
    else:
        scales, zeros, _ = _numbers(site, encoding, constant)
        result = graph.call_function(_ops.dequantize_per_channel.default, (stored, scales, zeros, encoding.axis, *grid))
    for step in reversed(layout):
        if isinstance(step, Permute):
            result = graph.call_function(aten.permute.default, (result, np.argsort(step.axes).tolist()))
        elif isinstance(step, View):
            result = graph.call_function(aten.reshape.default, (result, list(step.before)))
        else:
            raise _refusal(site, spec, "its values are a part of a larger constant, or that in another order")
    return result


def _native_grid(encoding: Encoding, layout: Layout) -> Encoding:
    """The grid of a constant in the user's layout: the axis of its channels, and their order."""
    scale, zero, axis = encoding.scale, encoding.zero_point, encoding.axis
    for step in reversed(layout):
        if isinstance(step, Permute):
            axis = None if axis is None else step.axes[axis]
        elif axis == 0:
            scale, zero = to_native(scale, (step,)), to_native(zero, (step,))
    return replace(encoding, scale=scale, zero_point=zero, axis=axis)


def _numbers(site: Site, encoding: Encoding, constant: Constant) -> tuple[Any, ...]:
    """Scale and zero point; for channels as constants, and their axis."""
    if isinstance(encoding.spec.granularity, PerTensor):
        return float(encoding.scale), int(encoding.zero_point)
    if not isinstance(encoding.spec.granularity, PerChannel):
        raise _refusal(site, encoding.spec, "only a constant can have a scale for each block")
    return (*_grid_constants(encoding.scale, encoding.zero_point, constant), encoding.axis)


def _block_scales(site: Site, encoding: Encoding, shape: tuple[int, ...], constant: Constant) -> tuple[Any, ...]:
    """Scales and zero points of every block, in rows."""
    spec = encoding.spec
    if len(shape) != 2 or encoding.axis != 1:
        raise _refusal(site, spec, "blocks are of the input channels of a matrix")
    if shape[1] == encoding.scale.shape[1]:
        raise _refusal(site, spec, "a block holds at least two values")
    whole = (shape[0], encoding.scale.shape[1])
    return _grid_constants(
        np.broadcast_to(encoding.scale, whole), np.broadcast_to(encoding.zero_point, whole), constant
    )


def _grid_constants(scale: Any, zero_point: Any, constant: Constant) -> tuple[fx.Node, fx.Node]:
    zeros = torch.from_numpy(np.array(zero_point, np.int64))  # int64 as PT2E's own observers make it
    return constant("_scale", torch.from_numpy(np.array(scale))), constant("_zero_point", zeros)


def _stored_type(site: Site, spec: QuantSpec) -> torch.dtype:
    """The smallest integer type that holds the grid. uint16 goes into int32: torch has no arithmetic of uint16."""
    if not spec.is_integer:
        raise _refusal(site, spec, "the operations round to integers")
    for dtype in (torch.int8, torch.uint8, torch.int16, torch.int32):
        limits = torch.iinfo(dtype)
        if limits.min <= spec.q_min and spec.q_max <= limits.max:
            return dtype
    raise _refusal(site, spec, "no integer type of torch holds it")


def _cast(graph: fx.Graph, x: fx.Node, dtype: torch.dtype) -> fx.Node:
    return graph.call_function(aten._to_copy.default, (x,), {"dtype": dtype})


def _refusal(site: Site, spec: QuantSpec, why: str) -> ModelError:
    return ModelError(
        f"{str(site)!r} is {spec}, which torch's quantized_decomposed operations cannot say: {why}. "
        "Choose another format for it, or export to 'onnx' or 'torchscript'"
    )
