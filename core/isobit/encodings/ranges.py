"""From a range of real values to an Encoding: done once, here, in float64.

The scale is computed in float64, for activations snapped up to 12 significant bits, and only then rounded to float32;
the zero point follows from the final scale. Snapping keeps the last-bit noise between frameworks out of the encodings:
two ranges that differ in their last float32 bits nearly always give the same 12-bit scale.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isobit import arithmetic
from isobit.encodings.encoding import Encoding
from isobit.encodings.quant_spec import Lpbq, PerBlock, PerChannel, PerTensor, QuantSpec
from isobit.errors import EncodingError

#: Significant bits of a snapped activation scale.
SNAP_BITS = 12

_FLOAT32_EPSILON = 1.1920929e-7

#: A range of fewer steps of the smallest scale is lost on its grid.
_FEWEST_LEVELS = 8

_SPAN = "its values span no more than"


class Grids(NamedTuple):
    """The grids of several ranges in one format: scales (float32) and zero points (int32), one a range."""

    spec: QuantSpec
    scale: NDArray[np.float32]
    zero_point: NDArray[np.int32]


def smallest_scale(spec: QuantSpec) -> float:
    """The floor of a computed scale: ``min(float32 epsilon, 0.01 / (2**bits - 1))``."""
    return min(_FLOAT32_EPSILON, 0.01 / ((1 << spec.bits) - 1))


def too_small(span: float, spec: QuantSpec) -> str:
    """Why values that span so little have no grid: the smallest scale leaves a few levels or none. Else empty."""
    floor = smallest_scale(spec)
    if not spec.is_integer or not 0 < span < min(_FEWEST_LEVELS, (1 << spec.bits) - 1) * floor:
        return ""
    return f"{_SPAN} {span:.2g}, and the smallest scale is {floor:.2g}: multiply it by a constant"


def is_too_small(reason: str) -> bool:
    """Whether a reason is that of `too_small`."""
    return reason.startswith(_SPAN)


def snap_up(scale: NDArray[np.float64]) -> NDArray[np.float64]:
    """`scale` rounded up to `SNAP_BITS` significant bits."""
    mantissa, exponent = np.frexp(scale)
    return np.asarray(np.ldexp(np.ceil(np.ldexp(mantissa, SNAP_BITS)), exponent - SNAP_BITS), np.float64)


def encode_range(
    minimum: ArrayLike, maximum: ArrayLike, spec: QuantSpec, *, axis: int | None = None, snap: bool = True
) -> Encoding:
    """The encoding of values in ``[minimum, maximum]``; arrays give one scale a channel along `axis`.

    Zero is always made representable. `spec.granularity` must be per tensor or per channel (None: told by the shape).
    """
    low = np.minimum(np.asarray(minimum, np.float64), 0.0)
    high = np.maximum(np.asarray(maximum, np.float64), 0.0)
    if not (np.all(np.isfinite(low)) and np.all(np.isfinite(high))):
        raise EncodingError(f"a range must be finite, not [{np.min(low)}, {np.max(high)}]")
    if spec.granularity is None:
        spec = spec.with_granularity(PerTensor() if low.ndim == 0 else PerChannel())
    if spec.bits == 16 and not spec.is_integer:
        return Encoding(spec.with_granularity(PerTensor()), np.float32(1), np.int32(0))  # type: ignore[arg-type]
    scale = _fill_empty_channels(_raw_scale(low, high, spec))
    return Encoding(spec, *_grids(low, scale, spec, snap), axis)


def candidate_grids(
    minimum: NDArray[np.float64], maximum: NDArray[np.float64], spec: QuantSpec, *, snap: bool = True
) -> Grids:
    """The grid that `encode_range` gives to each range ``[minimum[i], maximum[i]]`` of a tensor; any but 16-bit floats.

    For a search among many: it leaves the checks of an Encoding to the range that is chosen.
    """
    low = np.minimum(minimum, 0.0)
    return Grids(spec, *_grids(low, _raw_scale(low, np.maximum(maximum, 0.0), spec), spec, snap))


def _grids(
    low: NDArray[np.float64], raw_scale: NDArray[np.float64], spec: QuantSpec, snap: bool
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Final scales and zero points, with low <= 0; scales of float formats are not snapped."""
    scale = np.maximum(raw_scale, smallest_scale(spec))
    if not spec.is_integer:
        return scale.astype(np.float32), np.zeros(low.shape, np.int32)
    scale32 = (snap_up(scale) if snap else scale).astype(np.float32)
    return scale32, _zero_point(low, scale32, spec)


def encode_weight(
    values: NDArray[np.float32], spec: QuantSpec, *, channel_axis: int = 0, block_axis: int | None = None
) -> Encoding:
    """The min-max encoding of a constant tensor, never snapped; `spec` says the granularity.

    Blocks run along `block_axis` and share their scale over all other axes but the channel's.
    Raises EncodingError when the block size does not divide the axis.
    """
    granularity = spec.granularity or PerTensor()
    spec = spec.with_granularity(granularity)
    if values.size == 0:
        raise EncodingError("an empty tensor has no range")
    if isinstance(granularity, PerTensor):
        return encode_range(values.min(), values.max(), spec, snap=False)
    if isinstance(granularity, PerChannel):
        reduced = tuple(i for i in range(values.ndim) if i != channel_axis)
        return encode_range(values.min(reduced), values.max(reduced), spec, axis=channel_axis, snap=False)
    if spec.type_name in ("float16", "bfloat16"):
        return encode_range(values.min(), values.max(), spec)  # their scale is 1
    if block_axis is None:
        raise EncodingError(f"{spec} needs a block axis, and this tensor of shape {values.shape} has none")
    return _encode_blocks(values, spec, granularity, channel_axis, block_axis)


def _encode_blocks(
    values: NDArray[np.float32], spec: QuantSpec, granularity: PerBlock | Lpbq, channel_axis: int, block_axis: int
) -> Encoding:
    size, length = granularity.size, values.shape[block_axis]
    if length % size:
        raise EncodingError(f"block size {size} does not divide axis {block_axis} of a tensor of shape {values.shape}")
    split = (*values.shape[:block_axis], length // size, size, *values.shape[block_axis + 1 :])
    scale_axes = {channel_axis + (channel_axis > block_axis), block_axis}
    # Batch axes of a stacked matrix (batch, out, in) are channels too: only the block and what follows it is reduced.
    reduced = tuple(i for i in range(len(split)) if i not in scale_axes and i > block_axis)
    blocks = values.reshape(split)
    low = blocks.min(reduced, keepdims=True).squeeze(block_axis + 1)
    high = blocks.max(reduced, keepdims=True).squeeze(block_axis + 1)
    low64, high64 = np.minimum(low.astype(np.float64), 0), np.maximum(high.astype(np.float64), 0)
    scale = np.maximum(_fill_empty_channels(_raw_scale(low64, high64, spec)), smallest_scale(spec))
    if isinstance(granularity, Lpbq):
        return _lpbq_encoding(scale, spec, channel_axis, block_axis)
    scale32 = scale.astype(np.float32)
    return Encoding(spec, scale32, _zero_point(low64, scale32, spec), block_axis)


def _lpbq_encoding(scale: NDArray[np.float64], spec: QuantSpec, channel_axis: int, block_axis: int) -> Encoding:
    """Integer multipliers of ``1 .. 2**bits`` over the float scale of each output channel."""
    levels = 1 << spec.bits
    reduced = tuple(i for i in range(scale.ndim) if i != channel_axis and i >= block_axis)
    channel = (scale.max(reduced, keepdims=True) / levels).astype(np.float32)
    multiplier = np.clip(np.rint(scale / channel), 1, levels).astype(np.int32)
    effective = (multiplier.astype(np.float32) * channel).astype(np.float32)
    zero = np.zeros(scale.shape, np.int32)
    return Encoding(spec, effective, zero, block_axis, multiplier, channel)


def _raw_scale(low: NDArray[np.float64], high: NDArray[np.float64], spec: QuantSpec) -> NDArray[np.float64]:
    """The tightest scale whose grid covers ``[low, high]``, with low <= 0 <= high."""
    if not spec.is_integer:
        return np.asarray(np.maximum(-low, high) / arithmetic.largest_float(spec.dtype))
    steps = (1 << spec.bits) - 1
    if not spec.symmetric:
        return np.asarray((high - low) / steps)
    if spec.dtype == "uint":
        if np.any(low < 0):
            raise EncodingError(
                f"{spec} has no negative levels, but the range reaches down to {np.min(low):.6g}: "
                "use an asymmetric or a signed format"
            )
        return np.asarray(high / steps)
    negative = (steps // 2) if spec.strict else (steps + 1) // 2
    return np.asarray(np.maximum(high / (steps // 2), -low / negative), np.float64)


def _fill_empty_channels(scale: NDArray[np.float64]) -> NDArray[np.float64]:
    """A channel of zeros takes the median scale of the others: any scale fits it, and a tiny one would be a trap."""
    empty = scale == 0
    if scale.ndim == 0 or not empty.any() or empty.all():
        return scale
    return np.where(empty, np.median(scale[~empty]), scale)


def _zero_point(low: NDArray[np.float64], scale: NDArray[np.float32], spec: QuantSpec) -> NDArray[np.int32]:
    if spec.symmetric:
        return np.zeros(scale.shape, np.int32)
    position = spec.q_min + np.rint(-low / scale.astype(np.float64))
    return np.asarray(np.clip(position, spec.q_min, spec.q_max), np.int32)
