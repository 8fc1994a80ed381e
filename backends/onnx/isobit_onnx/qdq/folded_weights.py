"""Weights that a runtime makes floats of once, when it loads a file, since its kernels read them as floats anyway.

onnxruntime folds all operations on constants but DequantizeLinear, which it computes at each run. Written as a Cast
and a Mul, with a Sub where there is a zero point, a weight is stored as integers and gives the same floats: the
difference of integers of 16 bits is exact, and the product is rounded once, as DequantizeLinear rounds it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from isobit_onnx.qdq.table_lookups import behind_reshapes

Sizes = tuple[int, ...]

#: Types of weights that are stored so.
_STORED = frozenset(getattr(ir.DataType, name) for name in ("INT4", "UINT4", "INT8", "UINT8", "INT16", "UINT16"))


class FoldedWeight(NamedTuple):
    """What such a product dequantizes: the stored integers and their grid, and the float weight that comes out."""

    levels: ir.Value
    scale: NDArray[Any]
    zero_point: NDArray[Any]
    axis: int | None
    block: int | None
    result: ir.Value


def blocked_sizes(shape: Sizes, axis: int, block: int) -> Sizes:
    """Sizes of a weight with its blocks along an axis of their own, behind that which counts them."""
    return (*shape[:axis], shape[axis] // block, block, *shape[axis + 1 :])


def along(array: NDArray[Any], rank: int, axis: int | None, block: int | None) -> NDArray[Any]:
    """Scales or zero points as they are multiplied with a weight of so many axes, or with its blocks."""
    if array.size == 1 and not block:
        return array.reshape(())
    if block and axis is not None:
        return np.expand_dims(array, axis + 1)
    return array.reshape([-1 if index == axis else 1 for index in range(rank)])


def folded_weight(product: ir.Node) -> FoldedWeight | None:
    """The weight that a Mul dequantizes; None where it is another product."""
    if product.op_type != "Mul" or product.domain or len(product.inputs) != 2:
        return None
    scale, below = _array(product.inputs[1]), product.inputs[0]
    if scale is None or scale.dtype != np.float32 or below is None:
        return None
    if not np.all((scale >= np.finfo(np.float32).tiny) & np.isfinite(scale)):
        return None
    zero: NDArray[Any] | None = None
    producer = below.producer()
    if producer is not None and producer.op_type == "Sub" and len(producer.inputs) == 2:
        zero, below = _array(producer.inputs[1]), producer.inputs[0]
        if zero is None:
            return None
    cast = behind_reshapes(below).producer() if below is not None else None
    if cast is None or below is None or cast.op_type != "Cast" or cast.inputs[0] is None:
        return None
    levels, is_blocked = cast.inputs[0], behind_reshapes(below) is not below
    stored = behind_reshapes(levels).const_value
    if stored is None or stored.dtype not in _STORED:
        return None
    offsets = np.zeros(scale.shape, np.float32) if zero is None else zero
    zeros = offsets.astype(np.int32)
    if zeros.shape != scale.shape or not np.array_equal(zeros.astype(stored.dtype.numpy()), offsets):
        return None
    shape, result = tuple(stored.numpy().shape), product.outputs[0]
    if not is_blocked:
        axis = _axis(scale.shape, shape)
        if scale.size > 1 and axis is None:
            return None
        sizes = () if axis is None else (shape[axis],)
        return FoldedWeight(levels, scale.reshape(sizes), zeros.reshape(sizes), axis, None, result)
    view = next((use.node for use in result.uses()), None)
    axis = next((i for i, (a, b) in enumerate(zip(shape, scale.shape, strict=False)) if a != b), None)
    if view is None or view.op_type != "Reshape" or axis is None:
        return None
    block = shape[axis] // max(scale.shape[axis], 1)
    if scale.shape != (*blocked_sizes(shape, axis, block)[: axis + 1], 1, *shape[axis + 1 :]):
        return None
    return FoldedWeight(levels, scale.squeeze(axis + 1), zeros.squeeze(axis + 1), axis, block, view.outputs[0])


def _axis(sizes: Sizes, shape: Sizes) -> int | None:
    """The axis of a weight along which a factor of these sizes has a value for each place, or None."""
    longer = [index for index, size in enumerate(sizes) if size > 1]
    if len(sizes) != len(shape) or len(longer) != 1 or sizes[longer[0]] != shape[longer[0]]:
        return None
    return longer[0]


def _array(value: ir.Value | None) -> NDArray[Any] | None:
    constant = value.const_value if value is not None and not value.is_graph_input() else None
    return None if constant is None else constant.numpy()
