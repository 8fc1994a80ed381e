"""Powers of two for the channels of a tensor that one grid rounds: small channels are enlarged until they fill it.

A power of two keeps every bit: a value times ``2**k`` rounds on a grid as it is to one that is ``2**k`` times finer.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from isobit.techniques.layers.weighted_layer import Floats

Exponents = NDArray[np.int64]

#: Channels are enlarged by at most this many octaves: after so many, their noise is no part of the whole any more.
MOST_OCTAVES = 12

#: Upper ends of the grid by octave, and how far its lower end may lie from that of the upper, in half octaves.
_ENDS, _HALF_OCTAVES = 8, 12

#: Milder exponents are taken where the error is at most this much larger, so that neither last bits choose nor a
#: channel that hardly ever fires is enlarged for nothing.
_TOLERANCE = 0.02

#: Grids that are tried with every limit of octaves, and octaves that channels may keep free: new data reach farther.
_TRIED, _SPARED = 3, 2


def best_exponents(
    low: Floats,
    high: Floats,
    coarse: Callable[[Exponents], Floats],
    error: Callable[[Exponents], Floats],
    room: Exponents,
) -> tuple[Exponents, float]:
    """The exponents by which channels within ``[low, high]`` are enlarged, and the error that is then expected.

    `coarse` and `error` give the error for each row of exponents, (rows, channels); `coarse` may leave out what costs
    time. `room` is how far each channel may be enlarged at all.
    """
    windows = _windows(low, high, room)
    best = windows[np.argsort(coarse(windows), kind="stable")[:_TRIED]]
    spared = np.maximum(best[:, None] - np.arange(_SPARED + 1)[:, None], 0).reshape(-1, 1, low.size)
    limits = np.arange(MOST_OCTAVES + 1)[:, None]
    tried = _distinct(np.minimum(spared, limits).reshape(-1, low.size))
    tried = tried[np.argsort(tried.sum(axis=1), kind="stable")]
    errors = error(tried)
    chosen = int(np.argmax(errors <= errors.min() * (1 + _TOLERANCE)))
    return tried[chosen], float(errors[chosen])


def _windows(low: Floats, high: Floats, room: Exponents) -> Exponents:
    """For each shape of a grid, the largest exponents with which every channel lies inside; the least of them is 0."""
    up, down = np.maximum(high, 0.0), np.maximum(-low, 0.0)
    lively = (up > 0) | (down > 0)
    if not lively.any():
        return np.zeros((1, low.size), np.int64)
    ends = np.exp2(np.arange(_ENDS) / _ENDS)
    two_sided = up.any() and down.any()
    ratios = np.exp2(np.arange(-_HALF_OCTAVES, _HALF_OCTAVES + 1) / 2) if two_sided else np.ones(1)
    with np.errstate(divide="ignore"):
        above = np.log2(ends)[:, None] - np.log2(up)  # (ends, channels), infinite where nothing lies
        below = np.log2(ends[:, None] * ratios)[..., None] - np.log2(down)  # (ends, ratios, channels)
    fitting = np.floor(np.minimum(above[:, None], below)).reshape(-1, low.size)
    fitting = np.where(lively, fitting, np.inf)
    least = fitting.min(axis=1, keepdims=True)
    exponents = np.where(lively, np.minimum(fitting - least, MOST_OCTAVES), 0.0)
    return _distinct(np.minimum(exponents, room).astype(np.int64))


def _distinct(rows: Exponents) -> Exponents:
    """Each row once, in the order of their numbers: ``np.unique(rows, axis=0)``, which compares field by field.

    No exponent is negative or needs more than a byte.
    """
    texts = np.ascontiguousarray(rows, np.uint8).view(np.dtype((np.void, rows.shape[1])))
    return rows[np.unique(texts, return_index=True)[1]]
