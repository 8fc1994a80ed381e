"""Tensors that share a grid: which schemes see a small part as often as its energy is smaller."""

from __future__ import annotations

import numpy as np
import pytest

from isobit.calibration import MinMaxRange
from isobit.calibration.shared_grid import together
from isobit.statistics import Histogram


class _Own(MinMaxRange):
    """A scheme of one's own that says by value whether its cost is a sum."""

    sums_errors = False


class _Sums(_Own):
    sums_errors = True


@pytest.mark.parametrize(("scheme", "times"), [(_Sums(), 1024), (_Own(), 1), (MinMaxRange(), 1)])
def test_whether_errors_are_summed_is_a_value(scheme: MinMaxRange, times: int) -> None:
    parts = [Histogram(None), Histogram(None)]
    for part, largest in zip(parts, (1, 100), strict=True):
        part.update(np.full((1, 10), largest, np.float32))
    assert together(parts, scheme).elements == 10 * (times + 1)
