"""An Encoding as ONNX says it: element type, scale and zero point tensors, axis and block size, in native layout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from isobit.arithmetic import float_type
from isobit.encodings import Encoding, QuantSpec
from isobit.formats.native_grid import native_form
from isobit.graph import Layout

_INTEGERS = {
    "int": {4: ir.DataType.INT4, 8: ir.DataType.INT8, 16: ir.DataType.INT16, 32: ir.DataType.INT32},
    "uint": {4: ir.DataType.UINT4, 8: ir.DataType.UINT8, 16: ir.DataType.UINT16},
}
_FLOATS = {
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
    "float8e4m3": ir.DataType.FLOAT8E4M3FN,
    "float8e5m2": ir.DataType.FLOAT8E5M2,
}


#: Where a DequantizeLinear of a constant says the format of its levels, which its type may be wider than.
FORMAT = "isobit.format"


@dataclass(frozen=True, eq=False)
class OnnxGrid:
    """Scale and zero point of QuantizeLinear / DequantizeLinear, and their attributes."""

    type: ir.DataType
    scale: NDArray[np.float32]
    zero_point: NDArray[np.int32]
    axis: int | None = None
    block_size: int | None = None


def stored_type(spec: QuantSpec, *, activation: bool) -> ir.DataType:
    """The narrowest ONNX type that holds the format: a weight of 3 bits is stored in int4, one of 5 in int8.

    Activations have at least 8 bits: onnxruntime (1.32) refuses to load Relu or Clip before a QuantizeLinear to int4.
    """
    if not spec.is_integer:
        return _FLOATS[spec.dtype]
    types = _INTEGERS[spec.dtype]
    least = max(spec.bits, 8) if activation else spec.bits
    return types[min(bits for bits in types if bits >= least)]


def needs_clip(spec: QuantSpec) -> bool:
    """Whether the type that stores an activation has levels that the format does not."""
    return spec.is_integer and (spec.strict or spec.bits not in (8, 16))


def grid_of(encoding: Encoding, shape: tuple[int, ...] = (), layout: Layout = (), *, activation: bool) -> OnnxGrid:
    """The grid of a tensor whose native `shape` becomes canonical through `layout`.

    A per-tensor encoding needs neither.
    """
    kind = stored_type(encoding.spec, activation=activation)
    form = native_form(encoding, shape, layout)
    return OnnxGrid(kind, form.of(encoding.scale), form.of(encoding.zero_point), form.axis, form.block_size)


def integer_tensor(values: NDArray[np.int32], kind: ir.DataType, name: str) -> ir.Tensor[Any]:
    """Integers (or the bits of small floats) as a tensor of an ONNX type."""
    return ir.Tensor(values.astype(kind.numpy()), dtype=kind, name=name)


def float_tensor(values: NDArray[np.float32], spec: QuantSpec, name: str) -> ir.Tensor[Any]:
    """Real values as a tensor of a smaller float type, saturated where the type is."""
    return ir.Tensor(values.astype(float_type(spec.dtype)), dtype=_FLOATS[spec.dtype], name=name)
