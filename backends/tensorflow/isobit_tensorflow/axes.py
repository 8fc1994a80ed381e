"""The orders of a tensor's axes: channels at axis 1, as the graph has them, and channels last, as TensorFlow has."""

from __future__ import annotations


def last_axes(rank: int) -> tuple[int, ...]:
    """The canonical axes in the order of a channels-last tensor."""
    return (0, *range(2, rank), 1)


def first_axes(rank: int) -> tuple[int, ...]:
    """The inverse of `last_axes`."""
    return (0, rank - 1, *range(1, rank - 1))
