"""Calibration schemes, from the histogram, against the values themselves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isobit.calibration import Calibrator, MinMaxRange, MovingAverage, Percentile, parse_calibrator
from isobit.encodings import QuantSpec
from isobit.errors import FormatError
from isobit.statistics import Histogram

SPEC = QuantSpec.parse("uint8")
KNOWN: dict[str, type[Calibrator]] = {
    "minmax": MinMaxRange,
    "moving-average": MovingAverage,
    "percentile": Percentile,
}


def histogram_of(x: np.ndarray) -> Histogram:
    histogram = Histogram(None)
    histogram.update(x.reshape(1, -1))
    return histogram


def bin_width(value: float) -> float:
    """The bin of a bfloat16 pattern is 2**-7 of its power of two wide."""
    return max(2.0 ** (np.floor(np.log2(abs(value))) - 7), 2.0**-133) if value else 2.0**-133


@given(
    values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=60),
    percentile=st.floats(50.001, 100, exclude_max=True),
)
def test_percentile_is_within_a_bin_of_the_sorted_values(values: list[float], percentile: float) -> None:
    x = np.sort(np.float32(values)).astype(np.float64)
    low, high = Percentile(percentile).range(histogram_of(np.float32(values)), SPEC)
    tail = (100 - percentile) / 100 * x.size
    # The element that the tail ends in: `tail` elements lie below the low end, and as many above the high end.
    below = x[min(int(np.floor(tail)), x.size - 1)]
    above = x[::-1][min(int(np.floor(tail)), x.size - 1)]
    assert abs(low - below) <= bin_width(below) * (1 + 1e-9)
    assert abs(high - above) <= bin_width(above) * (1 + 1e-9)
    assert x[0] <= low <= high + bin_width(high)
    assert high <= x[-1]


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9, 99.99])
def test_percentile_follows_numpy_on_many_values(percentile: float) -> None:
    x = np.random.default_rng(0).laplace(size=200_000).astype(np.float32)
    low, high = Percentile(percentile).range(histogram_of(x), SPEC)
    expected = np.quantile(x.astype(np.float64), [1 - percentile / 100, percentile / 100])
    assert low == pytest.approx(expected[0], abs=bin_width(expected[0]))
    assert high == pytest.approx(expected[1], abs=bin_width(expected[1]))


def test_both_tails_are_cut_alike() -> None:
    x = np.random.default_rng(0).gamma(2.0, size=50_000).astype(np.float32)
    low, high = Percentile(99.0).range(histogram_of(x), SPEC)
    mirrored = Percentile(99.0).range(histogram_of(-x), SPEC)
    assert mirrored == pytest.approx((-high, -low))
    assert low > x.min()
    assert high < x.max()


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40))
def test_hundred_is_minmax(values: list[float]) -> None:
    histogram = histogram_of(np.float32(values))
    assert MinMaxRange().range(histogram, SPEC) == (min(np.float32(values)), max(np.float32(values)))
    assert Percentile(100).range(histogram, SPEC) == MinMaxRange().range(histogram, SPEC)


@given(st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=40))
def test_a_higher_percentile_never_narrows_the_range(values: list[float]) -> None:
    histogram = histogram_of(np.float32(values))
    ranges = [Percentile(p).range(histogram, SPEC) for p in (60, 90, 99, 99.9, 100)]
    lows, highs = zip(*ranges, strict=True)
    assert list(lows) == sorted(lows, reverse=True)
    assert list(highs) == sorted(highs)


def test_one_value_is_its_own_range() -> None:
    assert Percentile(99).range(histogram_of(np.full(9, 3.3, np.float32)), SPEC) == (np.float32(3.3), np.float32(3.3))


@pytest.mark.parametrize("constant", [0.01, 0.3, 1.0])
def test_a_moving_average_follows_the_batches(constant: float) -> None:
    batches = np.random.default_rng(0).standard_normal((40, 1, 16)).astype(np.float32)
    histogram = Histogram()
    low, high = float(batches[0].min()), float(batches[0].max())
    for batch in batches:
        histogram.update(batch)
        low = (1 - constant) * low + constant * float(batch.min())
        high = (1 - constant) * high + constant * float(batch.max())
    assert MovingAverage(constant).range(histogram, SPEC) == pytest.approx((low, high), rel=1e-12)
    assert MovingAverage(constant).range(histogram_of(np.float32([2, 3])), SPEC) == (2.0, 3.0)


@pytest.mark.parametrize(
    ("text", "scheme"),
    [
        ("moving-average", MovingAverage(0.01)),
        ("moving-average=0.1", MovingAverage(0.1)),
        ("minmax", MinMaxRange()),
        (" MinMax ", MinMaxRange()),
        ("percentile", Percentile(99.99)),
        ("percentile=99.9", Percentile(99.9)),
        ("percentile=100", Percentile(100)),
        (Percentile(90), Percentile(90)),
    ],
)
def test_reading_a_scheme(text: str | Calibrator, scheme: Calibrator) -> None:
    assert parse_calibrator(text, KNOWN) == scheme
    assert isinstance(scheme, Calibrator)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "minmx",
            r"unknown calibration method 'minmx' \(did you mean 'minmax'\?\); known are minmax, moving-av",
        ),
        ("", "unknown calibration method ''"),
        ("minmax=3", "calibration method 'minmax=3': min-max takes no setting"),
        ("minmax=", "min-max takes no setting"),
        ("moving-average=0.001", "the averaging constant lies from 0.01 to 1, not 0.001"),
        ("moving-average=nan", "the averaging constant lies from 0.01 to 1"),
        ("percentile=", "calibration method 'percentile=':"),
        ("percentile=much", "could not convert string to float"),
        ("percentile=50", "a percentile lies above 50 and up to 100, not 50"),
        ("percentile=100.1", "a percentile lies above 50"),
        ("percentile=nan", "a percentile lies above 50"),
        ("percentile=-99", "a percentile lies above 50"),
    ],
)
def test_bad_settings(text: str, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        parse_calibrator(text, KNOWN)
