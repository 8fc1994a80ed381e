"""The noise that rounding puts on a weight whose columns are scaled, for many scalings at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from isobit.encodings.quant_spec import PerBlock, PerChannel, PerTensor
from isobit.encodings.ranges import candidate_grids, encode_weight
from isobit.placement.plan import Placement
from isobit.techniques.layers.weighted_layer import Floats


def rounding_noise(weight: NDArray[np.float32], factors: NDArray[np.float32], placement: Placement) -> Floats:
    """The variance that rounding puts on ``weight * factor``, summed over the outputs, for each of `factors`.

    `weight` is (outputs, inputs), `factors` and the result (changes, inputs). On a grid of integers the variance is
    ``scale**2 / 12``, or 0 where all is zero; on one of floats it is the square of what rounding changes.
    """
    size = _block_size(weight, placement)
    if size is None:
        return np.stack([_squared_errors(weight * factor, placement) for factor in factors])
    from isobit.techniques.input_scaling.kernels import scaled_extremes  # compiles on first use

    blocks = weight.shape[1] // size
    ends = np.empty((2, len(weight), blocks, len(factors)), np.float32)
    split = np.ascontiguousarray(weight, np.float32).reshape(-1, blocks, size)
    scaled_extremes(split, np.ascontiguousarray(factors.T, np.float32).reshape(blocks, size, -1), *ends)
    low, high = ends.astype(np.float64)
    if isinstance(placement.spec.granularity or PerTensor(), PerTensor):
        low, high = low.min(axis=(0, 1), keepdims=True), high.max(axis=(0, 1), keepdims=True)
    scale = np.where(low < high, candidate_grids(low, high, placement.spec, snap=False).scale, 0)
    variance = np.broadcast_to(np.square(scale) / 12, ends.shape[1:]).sum(axis=0, dtype=np.float64)
    return np.repeat(variance.T, size, axis=1)


def _block_size(weight: NDArray[np.float32], placement: Placement) -> int | None:
    """How many inputs of one output share a scale, all at most; None where scales are not plain ones of integers."""
    granularity, inputs = placement.spec.granularity or PerTensor(), weight.shape[1]
    if not placement.spec.is_integer:
        return None
    if isinstance(granularity, PerBlock) and (placement.channel_axis, placement.block_axis) == (0, 1):
        return granularity.size if inputs % granularity.size == 0 else None
    is_by_output = isinstance(granularity, PerChannel) and placement.channel_axis == 0
    return inputs if is_by_output or isinstance(granularity, PerTensor) else None


def _squared_errors(weight: NDArray[np.float32], placement: Placement) -> Floats:
    encoding = encode_weight(
        weight, placement.spec, channel_axis=placement.channel_axis, block_axis=placement.block_axis
    )
    if placement.spec.is_integer:
        variance = np.square(np.broadcast_to(encoding.broadcast(weight.shape)[0], weight.shape)) / 12
    else:
        variance = np.square(encoding.fake_quantize(weight) - weight)
    return np.asarray(variance.sum(axis=0, dtype=np.float64))
