"""Arrays that a framework hands out read only, as JAX does, are observed like any other."""

from __future__ import annotations

import numpy as np

from isobit.statistics import Histogram, MinMax, Moments


def test_observers_take_read_only_arrays() -> None:
    values = np.random.default_rng(0).standard_normal((4, 3, 5)).astype(np.float32)
    frozen = values.copy()
    frozen.flags.writeable = False
    for kind in (Histogram, MinMax, Moments):
        from_read_only, expected = kind(), kind()
        from_read_only.update(frozen, 1)
        expected.update(values, 1)
        for name, array in expected.arrays().items():
            np.testing.assert_array_equal(from_read_only.arrays()[name], array, err_msg=f"{kind.__name__} {name}")
