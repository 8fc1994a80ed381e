"""Giving a tensor that is not NumPy's to an observer: only what the observer needs is fetched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from isobit.statistics.observer import Observer
from isobit.statistics.sampling import strided

#: The smallest and the largest element of an array, as Python numbers.
Bounds = Callable[[Any], tuple[float, float]]


def observe_tensor(
    observer: Observer, value: Any, channel_axis: int | None, bounds: Bounds, fetch: Callable[[Any], Any] = np.asarray
) -> None:
    """Give an observer one batch of a tensor; where it wants bounds and a sample, no more leaves the device.

    `value` is an array of any framework that reshapes and slices as NumPy does, in canonical layout;
    `fetch` makes it NumPy's. A tensor with NaN or infinity, which is rare, is fetched whole.
    """
    if observer.wants in ("sample", "bounds") and 0 not in value.shape and not str(value.dtype).endswith("bool"):
        low, high = bounds(value)
        if np.isfinite(low) and np.isfinite(high):
            if observer.wants == "sample":
                counted = fetch(strided(value, channel_axis, observer.limit))
                observer.absorb(low, high, counted, int(np.prod(value.shape)))
            elif observer.wants == "bounds":
                observer.add(low, high)
            return
    observer.update(np.asarray(fetch(value), np.float32), channel_axis)
