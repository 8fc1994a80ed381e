"""A scheme is asked once for the range of what it has seen, and again when more was seen."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from isobit.calibration import MinMaxRange, Percentile
from isobit.calibration.range_memo import RangeMemo
from isobit.encodings import QuantSpec
from isobit.statistics import Histogram


@dataclass
class Unhashable:
    """A scheme of a plug-in that is no frozen dataclass."""

    settings: list[float] = field(default_factory=list)
    name = "unhashable"


def seen(*values: float) -> Histogram:
    histogram = Histogram()
    histogram.update(np.array([values], np.float32))
    return histogram


@pytest.mark.parametrize("scheme", [MinMaxRange(), Unhashable()])
def test_a_range_is_chosen_anew_where_anything_differs(scheme) -> None:
    memo, histogram, other, asked = RangeMemo(), seen(1.0, 2.0), seen(1.0, 2.0), []

    def range_of(calibrator=scheme, spec="uint8", function=None, histograms=(histogram,)) -> int:
        def choose() -> tuple[float, float]:
            asked.append(histograms)
            return histograms[0].minimum, histograms[0].maximum

        return memo.range(calibrator, QuantSpec.parse(spec), function, histograms, choose)

    assert range_of() == range_of() == (1.0, 2.0)
    assert len(asked) == (1 if scheme == MinMaxRange() else 2)
    asked.clear()
    range_of(Percentile())
    range_of(spec="int8")
    range_of(function=np.tanh)
    range_of(histograms=(other,))
    range_of(histograms=(histogram, other))
    assert len(asked) == 5
    histogram.update(np.array([[3.0]], np.float32))
    assert range_of() == (1.0, 3.0)


def test_ranges_of_statistics_that_are_gone_are_forgotten() -> None:
    memo = RangeMemo()
    for _ in range(20):
        histogram = seen(1.0, 2.0)
        assert memo.range(MinMaxRange(), QuantSpec.parse("uint8"), None, (histogram,), lambda: (1.0, 2.0)) == (1.0, 2.0)
        del histogram
    assert not memo._chosen
