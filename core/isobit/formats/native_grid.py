"""Scales in the layout of a file: from a canonical Encoding to ONNX's (axis, block size), and back.

Both directions follow which elements of the tensor share a scale: a layout is converted exactly or refused.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isobit.encodings.encoding import Encoding
from isobit.encodings.quant_spec import Lpbq, PerBlock, PerChannel, PerTensor, QuantSpec
from isobit.errors import EncodingError
from isobit.graph.layout import Layout, Permute, compose, to_canonical, to_native

ArrayShape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class NativeForm:
    """Which scale belongs where in a native tensor.

    `index` is, for each scale of the native form, its position among the encoding's scales, flattened: a scalar per
    tensor; one an index of `axis`; with `block_size` of the tensor's rank.
    """

    index: NDArray[np.int64]
    axis: int | None = None
    block_size: int | None = None

    def of(self, values: NDArray[Any]) -> NDArray[Any]:
        """Values that the encoding has by scale, in the native form."""
        return np.asarray(values.reshape(-1)[self.index])


def native_form(encoding: Encoding, shape: ArrayShape, layout: Layout = ()) -> NativeForm:
    """The form of an encoding on a tensor whose native `shape` becomes canonical through `layout`.

    What is per channel in canonical layout may be blocks in the native one (a grouped ConvTranspose).
    Raises EncodingError when the encoding does not fit the tensor.
    """
    if isinstance(encoding.spec.granularity, PerTensor):
        return NativeForm(np.asarray(0))
    canonical = _canonical_shape(shape, layout)
    encoding.broadcast(canonical)  # or raises
    permutation = _permutation(layout, len(shape))
    if permutation is not None and encoding.axis is not None:
        return _permuted(encoding, canonical, permutation)
    marks = np.broadcast_to(_marks(encoding, canonical), canonical)
    native = to_native(marks, layout, np.zeros(shape, np.int64))
    axis, block = _form(native)
    if axis is None:
        return NativeForm(native.reshape(-1)[0])
    if block is None:
        return NativeForm(native[tuple(slice(None) if i == axis else 0 for i in range(len(shape)))], axis)
    return NativeForm(native.take(np.arange(0, shape[axis], block), axis), axis, block)


def canonical_encoding(
    spec: QuantSpec,
    scale: NDArray[np.float32],
    zero_point: NDArray[np.int32],
    axis: int | None,
    shape: ArrayShape,
    layout: Layout = (),
    *,
    channel_axis: int = 0,
    parts: tuple[NDArray[np.int32], NDArray[np.float32]] | None = None,
) -> Encoding:
    """The encoding of a tensor of native `shape` from its native scales.

    `spec` says the native granularity and `axis` its axis; `parts` are LPBQ's multipliers, of the scales' shape, and
    channel scales. `channel_axis` is the canonical axis of a single channel. Raises EncodingError.
    """
    if isinstance(spec.granularity, PerTensor):
        return Encoding(spec, scale.reshape(()), zero_point.reshape(()))
    native = Encoding(spec, scale, zero_point, axis, *(parts or ()))
    native.broadcast(shape)  # or raises
    permutation = _permutation(layout, len(shape))
    if permutation is not None and axis is not None:
        return _canonical_of_permuted(native, permutation, axis)
    if parts is not None:
        raise EncodingError("lpbq needs a weight whose axes are only transposed in the model")
    return _canonical_by_value(native, shape, layout, channel_axis)


def _canonical_by_value(native: Encoding, shape: ArrayShape, layout: Layout, channel_axis: int) -> Encoding:
    """By the values of the scales, for files write blocks out in full along the other axes."""
    marks = to_canonical(np.broadcast_to(_marks(native, shape), shape), layout)
    scale, zero_point = native.scale.reshape(-1)[marks], native.zero_point.reshape(-1)[marks]
    by_channel = [slice(None) if i == channel_axis else slice(0, 1) for i in range(marks.ndim)]
    if np.all(scale == scale[tuple(by_channel)]) and np.all(zero_point == zero_point[tuple(by_channel)]):
        spec = native.spec.with_granularity(PerChannel())
        return Encoding(
            spec, scale[tuple(by_channel)].reshape(-1), zero_point[tuple(by_channel)].reshape(-1), channel_axis
        )
    axis, block = _form(marks)
    if axis is None or block is None:
        raise EncodingError("its scales follow neither the channels nor blocks of the inputs in the model's layout")
    starts = np.arange(0, marks.shape[axis], block)
    spec = native.spec.with_granularity(PerBlock(block))
    return Encoding(spec, *_joined(scale.take(starts, axis), zero_point.take(starts, axis), axis), axis)


def _joined(
    scale: NDArray[np.float32], zero_point: NDArray[np.int32], block_axis: int
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Without the copies along axes behind the blocks, where isobit's own encodings have one scale."""
    for axis in range(block_axis + 1, scale.ndim):
        single = scale.take([0], axis), zero_point.take([0], axis)
        if np.all(scale == single[0]) and np.all(zero_point == single[1]):
            scale, zero_point = single
    return scale, zero_point


def _canonical_shape(shape: ArrayShape, layout: Layout) -> ArrayShape:
    return to_canonical(np.broadcast_to(np.int8(0), shape), layout).shape


def _permutation(layout: Layout, rank: int) -> tuple[int, ...] | None:
    """The axes of a layout that only transposes, else None."""
    steps = compose(layout, ())
    if not steps:
        return tuple(range(rank))
    return steps[0].axes if len(steps) == 1 and isinstance(steps[0], Permute) else None


def _permuted(encoding: Encoding, canonical: ArrayShape, permutation: tuple[int, ...]) -> NativeForm:
    marks, axis = np.arange(encoding.scale.size), permutation[encoding.axis or 0]
    if isinstance(encoding.spec.granularity, PerChannel):
        return NativeForm(marks, axis)
    blocks = encoding.scale.shape
    full = tuple(count if i == encoding.axis else n for i, (count, n) in enumerate(zip(blocks, canonical, strict=True)))
    index = np.broadcast_to(marks.reshape(blocks), full).transpose(np.argsort(permutation))
    return NativeForm(index, axis, canonical[encoding.axis or 0] // blocks[encoding.axis or 0])


def _canonical_of_permuted(native: Encoding, permutation: tuple[int, ...], axis: int) -> Encoding:
    """The same scales with their axes transposed; those of blocks that are written out in full are joined again."""
    moved = permutation.index(axis)
    if isinstance(native.spec.granularity, PerChannel):
        return replace(native, axis=moved)
    scale, zero_point = native.scale.transpose(permutation), native.zero_point.transpose(permutation)
    if native.multiplier is not None and native.channel_scale is not None:
        parts = native.multiplier.transpose(permutation), native.channel_scale.transpose(permutation)
        return Encoding(native.spec, scale, zero_point, moved, *parts)
    return Encoding(native.spec, *_joined(scale, zero_point, moved), moved)


def _marks(encoding: Encoding, shape: ArrayShape) -> NDArray[np.int64]:
    """For each element of a tensor of `shape` the position of its scale, in a shape that broadcasts to it."""
    marks, axis = np.arange(encoding.scale.size), encoding.axis or 0
    if isinstance(encoding.spec.granularity, PerChannel):
        return marks.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return np.repeat(marks.reshape(encoding.scale.shape), shape[axis] // encoding.scale.shape[axis], axis)


def _form(marks: NDArray[np.int64]) -> tuple[int | None, int | None]:
    """Axis and block size: (None, None) one scale, (axis, None) one an index, (axis, size) one a block."""
    varying = [axis for axis in range(marks.ndim) if np.any(marks != marks.take([0], axis))]
    if not varying:
        return None, None
    runs = {axis: _run_length(marks, axis) for axis in varying}
    if len(varying) == 1 and runs[varying[0]] == 1:
        return varying[0], None
    # One axis carries the blocks; along all others the scale tensor is written out in full.
    axis = max(varying, key=lambda a: runs[a])
    return axis, runs[axis]


def _run_length(marks: NDArray[np.int64], axis: int) -> int:
    steps = np.moveaxis(np.diff(marks, axis=axis), axis, 0)
    changes = np.flatnonzero(np.any(steps != 0, axis=tuple(range(1, marks.ndim))))
    return int(changes[0]) + 1 if changes.size else marks.shape[axis]


def block_count(spec: QuantSpec, length: int, where: str) -> int:
    """How many blocks of `spec` an axis of `length` has. Raises EncodingError when the size does not divide it."""
    size = spec.granularity.size if isinstance(spec.granularity, PerBlock | Lpbq) else 1
    if length % size:
        raise EncodingError(f"{where}: block size {size} does not divide {length} input channels")
    return length // size
