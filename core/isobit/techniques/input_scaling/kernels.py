"""The numba kernels of the search for factors. Compiled once a machine and cached."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

_Cube = NDArray[np.float32]

_READ = numba.types.Array(numba.float32, 3, "C", readonly=True)  # a writable one fits here too
_WRITTEN = numba.float32[:, :, ::1]


@numba.njit(numba.void(_READ, _READ, _WRITTEN, _WRITTEN), fastmath={"nnan", "nsz"}, cache=True, nogil=True)
def scaled_extremes(weight: _Cube, factors: _Cube, low: _Cube, high: _Cube) -> None:  # pragma: no cover (compiled)
    """The least and the largest of ``weight * factors`` in each block, and 0.

    `weight` is (outputs, blocks, size), `factors` (blocks, size, changes), the results (outputs, blocks, changes): the
    innermost loop runs over the changes, where nothing waits for what comes before.
    """
    low[:] = 0
    high[:] = 0
    for o in range(weight.shape[0]):
        for b in range(weight.shape[1]):
            for i in range(weight.shape[2]):
                value = weight[o, b, i]
                for c in range(factors.shape[2]):
                    product = value * factors[b, i, c]
                    low[o, b, c] = min(low[o, b, c], product)
                    high[o, b, c] = max(high[o, b, c], product)
