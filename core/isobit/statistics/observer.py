"""Observers: what reduces a tensor batch by batch, and how much it needs of it; what a model is asked to observe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from isobit.graph.sites import Input, Tensor

#: Before or after the quantizer of a site.
Stage = Literal["before", "after"]

#: What an observer needs of a tensor: its bounds, also with a sample of its elements, means or moments of its channels,
#: or all of it.
Wants = Literal["sample", "bounds", "means", "moments", "tensor"]


class TensorObserver(Protocol):
    """Reduces whole tensors."""

    wants: Literal["tensor"]

    def update(self, batch: NDArray[np.float32], channel_axis: int | None = None) -> None:
        """Add the tensor of one batch, in canonical layout; axis 0 is the batch."""
        ...


class BoundsObserver(Protocol):
    """Needs no more than the smallest and the largest element of each batch, where they are finite."""

    wants: Literal["bounds"]

    def update(self, batch: NDArray[np.float32], channel_axis: int | None = None) -> None:
        """Add the whole tensor of one batch, for a backend that does not reduce it or met NaN or infinity."""
        ...

    def add(self, minimum: float, maximum: float) -> None:
        """Add a batch by its bounds."""
        ...


class MeansObserver(Protocol):
    """Needs no more than the mean of each channel of each batch."""

    wants: Literal["means"]

    def update(self, batch: NDArray[np.float32], channel_axis: int | None = None) -> None:
        """Add the whole tensor of one batch, for a backend that does not reduce it."""
        ...

    def add_means(self, means: NDArray[Any], count: int) -> None:
        """Add a batch by the means of its channels (channels,), of so many elements each."""
        ...


class MomentsObserver(Protocol):
    """Needs no more than range, mean and mean square of each channel of each batch."""

    wants: Literal["moments"]

    def update(self, batch: NDArray[np.float32], channel_axis: int | None = None) -> None:
        """Add the whole tensor of one batch, for a backend that does not reduce it, or without an axis of channels."""
        ...

    def add_moments(self, moments: NDArray[Any], count: int) -> None:
        """Add a batch by the (4, channels) minima, maxima, means and mean squares of so many elements each."""
        ...


class SampleObserver(Protocol):
    """Needs the bounds of each batch and some of its elements (`sampling`), at most about `limit` a sample."""

    wants: Literal["sample"]
    limit: int | None

    def update(self, batch: NDArray[np.float32], channel_axis: int | None = None) -> None:
        """Add the whole tensor of one batch, for a backend that does not reduce it or met NaN or infinity."""
        ...

    def absorb(self, minimum: float, maximum: float, sampled: NDArray[np.float32], elements: int) -> None:
        """Add a batch that was reduced where it was computed: its exact bounds, chosen elements and element count."""
        ...

    def add_counts(self, counts: NDArray[np.int64]) -> int:
        """Add 65,536 counts of elements by their top 16 bits; returns how many are of infinity and NaN.

        For elements that are counted where they are: `absorb`, without sampled elements, tells the rest of them.
        """
        ...


#: A reducer: takes every batch of a tensor and keeps little (`isobit.statistics`). `wants` tells the kinds apart.
Observer = TensorObserver | BoundsObserver | MeansObserver | MomentsObserver | SampleObserver


@dataclass(frozen=True, eq=False)
class Request:
    """Reduce the tensor at `site` with `observer`; `stage` is before or after the site's quantizer."""

    site: Tensor | Input
    observer: Observer
    stage: Stage = "before"
