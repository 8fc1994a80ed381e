"""Which elements of a large tensor are counted: positions that follow from one sample's shape alone.

They are the same whatever the batch size, the order of batches or the framework: all channels at every k-th spatial
position of each sample, or, where a tensor has no channel axis or no space, every k-th element of each sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

AnyArray = TypeVar("AnyArray")

#: Elements counted of each sample, about; tensors at most this large are counted whole.
SAMPLE_LIMIT = 8192


@dataclass(frozen=True)
class Sampling:
    """Every `step`-th position of `positions`; `spatial` says that a position holds all channels."""

    step: int
    positions: int
    spatial: bool


def sampling_of(shape: Sequence[int], channel_axis: int | None, limit: int | None = SAMPLE_LIMIT) -> Sampling:
    """How one sample's elements are chosen, for a batch of `shape` (axis 0 is the batch)."""
    size = int(np.prod(shape[1:], dtype=np.int64))
    spatial = is_spatial(len(shape), channel_axis)
    channels = shape[1] if spatial else 1
    positions = size // channels if channels else 0
    if limit is None or size <= limit:
        return Sampling(1, positions, spatial)
    chosen_positions = max(1, limit // channels)
    return Sampling(_coprime(positions, -(-positions // chosen_positions)), positions, spatial)


def is_spatial(rank: int, channel_axis: int | None) -> bool:
    """Whether positions in space are chosen, all channels at each, and not single elements."""
    return channel_axis == 1 and rank > 2


def sample(
    batch: NDArray[np.float32], channel_axis: int | None, limit: int | None = SAMPLE_LIMIT
) -> NDArray[np.float32]:
    """The chosen elements of every sample of a batch, contiguous; the batch itself where all are chosen."""
    return np.ascontiguousarray(strided(batch, channel_axis, limit))


def strided(batch: AnyArray, channel_axis: int | None, limit: int | None = SAMPLE_LIMIT) -> AnyArray:
    """`sample` of an array of any framework that reshapes and slices as NumPy does, where it is."""
    array: Any = batch
    if array.ndim < 2:
        array = array.reshape(array.shape[0] if array.ndim else 1, -1)
    chosen = sampling_of(tuple(array.shape), channel_axis, limit)
    if chosen.step > 1:
        array = array.reshape(*array.shape[: 2 if chosen.spatial else 1], -1)[..., :: chosen.step]
    result: AnyArray = array
    return result


def _coprime(positions: int, number: int) -> int:
    """The smallest prime >= number that does not divide `positions`.

    It is coprime to every axis, so that the chosen elements do not line up in columns or in a few channels.
    """
    candidate = max(number, 2)
    while positions % candidate == 0 or any(candidate % d == 0 for d in range(2, int(candidate**0.5) + 1)):
        candidate += 1
    return candidate
