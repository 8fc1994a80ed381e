"""The noise that rounding puts on a weight whose inputs are scaled, for many scalings at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from isobit.encodings.quant_spec import PerBlock, PerChannel, PerTensor
from isobit.encodings.ranges import candidate_grids, encode_weight
from isobit.placement.plan import Placement
from isobit.techniques.layers.weighted_layer import Floats, by_input, summed_by_input


def rounding_noise(
    weight: NDArray[np.float32], factors: NDArray[np.float32], placement: Placement, groups: int = 1
) -> Floats:
    """The variance that rounding puts on ``weight * factor``, summed over what each input meets, for each of `factors`.

    `weight` is (outputs, inputs / groups, *kernel), `factors` and the result (changes, inputs). On a grid of integers
    the variance is ``scale**2 / 12``, or 0 where all is zero; on one of floats it is the square of what rounding
    changes.
    """
    granularity, spec = placement.spec.granularity or PerTensor(), placement.spec
    if spec.is_integer and groups > 1 and weight.shape[1] == 1 and _is_by_output(placement):
        return _depthwise_noise(weight, factors, placement)
    size = _block_size(weight, placement) if groups == 1 else None
    if size is None:
        return np.stack([_squared_errors(weight, factor, placement, groups) for factor in factors])
    from isobit.techniques.input_scaling.kernels import scaled_extremes  # compiles on first use

    taps = int(np.prod(weight.shape[2:], dtype=np.int64))
    blocks = weight.shape[1] // size
    ends = np.empty((2, len(weight), blocks, len(factors)), np.float32)
    split = np.ascontiguousarray(weight, np.float32).reshape(-1, blocks, size * taps)
    by_tap = np.repeat(np.asarray(factors, np.float32), taps, axis=1)
    scaled_extremes(split, np.ascontiguousarray(by_tap.T).reshape(blocks, size * taps, -1), *ends)
    low, high = ends.astype(np.float64)
    if isinstance(granularity, PerTensor):
        low, high = low.min(axis=(0, 1), keepdims=True), high.max(axis=(0, 1), keepdims=True)
    scale = np.where(low < high, candidate_grids(low, high, spec, snap=False).scale, 0)
    variance = np.broadcast_to(np.square(scale) / 12, ends.shape[1:]).sum(axis=0, dtype=np.float64)
    return np.repeat(variance.T, size, axis=1) * taps


def _block_size(weight: NDArray[np.float32], placement: Placement) -> int | None:
    """How many inputs of one output share a scale, all at most; None where scales are not plain ones of integers."""
    granularity, inputs = placement.spec.granularity or PerTensor(), weight.shape[1]
    if not placement.spec.is_integer:
        return None
    if isinstance(granularity, PerBlock) and (placement.channel_axis, placement.block_axis) == (0, 1):
        return granularity.size if inputs % granularity.size == 0 else None
    return inputs if _is_by_output(placement) or isinstance(granularity, PerTensor) else None


def _is_by_output(placement: Placement) -> bool:
    return isinstance(placement.spec.granularity, PerChannel) and placement.channel_axis == 0


def _depthwise_noise(weight: NDArray[np.float32], factors: NDArray[np.float32], placement: Placement) -> Floats:
    """Each output has a scale of its own, which its one input's factor multiplies."""
    rows = weight.reshape(len(weight), -1).astype(np.float64)
    low, high = np.minimum(rows.min(axis=1), 0), np.maximum(rows.max(axis=1), 0)
    scale = np.where(low < high, candidate_grids(low, high, placement.spec, snap=False).scale, 0)
    variance = (np.square(scale.astype(np.float64)) / 12).reshape(factors.shape[1], -1).sum(axis=1) * rows.shape[1]
    return np.asarray(variance * np.square(factors.astype(np.float64)))


def _squared_errors(
    weight: NDArray[np.float32], factor: NDArray[np.float32], placement: Placement, groups: int
) -> Floats:
    scaled = (weight * by_input(weight, groups, factor)).astype(np.float32)
    encoding = encode_weight(
        scaled, placement.spec, channel_axis=placement.channel_axis, block_axis=placement.block_axis
    )
    if placement.spec.is_integer:
        variance = np.square(np.broadcast_to(encoding.broadcast(weight.shape)[0], weight.shape)) / 12
        if not isinstance(placement.spec.granularity or PerTensor(), PerTensor):
            variance = variance * weight.any(axis=tuple(range(1, weight.ndim)), keepdims=True)
    else:
        variance = np.square(encoding.fake_quantize(scaled) - scaled)
    return summed_by_input(variance, groups)
