"""Giving a tensor that is not NumPy's to an observer: only what the observer needs is fetched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from isobit.backend import Observer
from isobit.sampling import strided
from isobit.statistics import Histogram, MinMax

#: The smallest and the largest element of an array, as Python numbers.
Bounds = Callable[[Any], tuple[float, float]]


def feed(
    observer: Observer, value: Any, channel_axis: int | None, bounds: Bounds, fetch: Callable[[Any], Any] = np.asarray
) -> None:
    """Give an observer one batch of a tensor; of a histogram bounds and counted elements leave the device, no more.

    `value` is an array of any framework that reshapes and slices as NumPy does, in canonical layout;
    `fetch` makes it NumPy's. A tensor with NaN or infinity, which is rare, is fetched whole.
    """
    if isinstance(observer, Histogram | MinMax) and 0 not in value.shape and not str(value.dtype).endswith("bool"):
        low, high = bounds(value)
        if np.isfinite(low) and np.isfinite(high):
            if isinstance(observer, Histogram):
                counted = fetch(strided(value, channel_axis, observer.limit))
                observer.absorb(low, high, counted, int(np.prod(value.shape)))
            else:
                observer.update(np.array([low, high], np.float32))
            return
    observer.update(np.asarray(fetch(value), np.float32), channel_axis)
