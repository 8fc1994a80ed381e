"""Entropy calibration against the definition, written out in loops."""

from __future__ import annotations

import math

import numpy as np
import pytest

from isobit.calibration import Entropy, MeanSquareError
from isobit.calibration.error import Bins
from isobit.calibration.schemes.entropy import divergences
from isobit.calibration.search import thresholds
from isobit.encodings import QuantSpec, encode_range
from isobit.encodings.ranges import candidate_grids
from isobit.statistics import Histogram

RNG = np.random.default_rng(0)
SHAPES = {
    "normal": RNG.standard_normal(3000),
    "relu": np.maximum(RNG.standard_normal(3000), 0),
    "laplace": RNG.laplace(size=3000),
    "negative": -RNG.gamma(2.0, size=3000),
    "skewed": RNG.gamma(2.0, size=3000) - 0.3,
    "outliers": np.concatenate([RNG.standard_normal(3000), [30.7, -20.2]]),
    "few": np.array([0.3, 1.0, 1.0, -7.5, 2.25]),
    "apart": np.array([4.0, 4.0, 4.0, -0.25]),
}


def histogram_of(x: np.ndarray) -> Histogram:
    histogram = Histogram(None)
    histogram.update(np.float32(x).reshape(1, -1))
    return histogram


def linear_counts(bins: Bins, width: float) -> dict[int, float]:
    """Counts in linear bins: each source bin is spread evenly over what it covers."""
    counts: dict[int, float] = {}
    for low, high, count in zip(*(part.tolist() for part in bins), strict=True):
        first, last = math.floor(low / width), math.ceil(high / width) - 1
        if low == high:  # one value, counted in the bin whose end farther from zero it is
            first = last = last if low > 0 else first
        for index in range(first, last + 1):
            inside = min(high, (index + 1) * width) - max(low, index * width)
            share = count if first == last else count * inside / (high - low)
            if share > 0:
                counts[index] = counts.get(index, 0.0) + share
    return counts


def divergence(counts: dict[int, float], low: float, high: float, spec: QuantSpec, width: float) -> float:
    """KL(P || Q) of one range, by its definition."""
    encoding = encode_range(low, high, spec)
    scale, zero = float(encoding.scale), int(encoding.zero_point)
    start, stop = math.floor(low / width), math.ceil(high / width)
    inside = {index: count for index, count in counts.items() if start <= index < stop}
    if not inside:
        return math.inf
    p = dict(inside)
    p[min(inside)] += sum(count for index, count in counts.items() if index < start)
    p[max(inside)] += sum(count for index, count in counts.items() if index >= stop)
    borders = [round((level + 0.5 - zero) * scale / width) for level in range(spec.q_min, spec.q_max)]
    levels: dict[int, list[int]] = {}
    for index in inside:
        levels.setdefault(sum(border <= index for border in borders), []).append(index)
    total, inside_total = sum(counts.values()), sum(inside.values())
    result = 0.0
    for members in levels.values():
        q = sum(inside[index] for index in members) / len(members) / inside_total
        result += sum(p[index] / total * math.log(p[index] / total / q) for index in members)
    return result


@pytest.mark.parametrize("text", ["uint4", "int4", "uint8", "int8", "int5 strict"])
@pytest.mark.parametrize("name", SHAPES)
def test_divergences_are_those_of_the_definition(name: str, text: str) -> None:
    spec, histogram = QuantSpec.parse(text), histogram_of(SHAPES[name][SHAPES[name] != 0])
    bins = Bins.of(histogram)
    largest = float(np.abs(SHAPES[name]).max())
    width = 2.0 ** (math.floor(math.log2(largest)) - 8)
    ends = thresholds(largest, 4, largest / 6)
    low, high = np.maximum(histogram.minimum, -ends), np.minimum(histogram.maximum, ends)
    actual = divergences(bins, candidate_grids(low, high, spec), low, high, width)
    counts = linear_counts(bins, width)
    expected = [divergence(counts, a, b, spec, width) for a, b in zip(low.tolist(), high.tolist(), strict=True)]
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("text", ["uint8", "int8", "uint4"])
@pytest.mark.parametrize("name", ["normal", "relu", "outliers"])
def test_the_range_has_the_smallest_divergence(name: str, text: str) -> None:
    spec, histogram = QuantSpec.parse(text), histogram_of(SHAPES[name])
    low, high = Entropy().range(histogram, spec)
    counts = linear_counts(Bins.of(histogram_of(SHAPES[name][SHAPES[name] != 0])), largest_width(histogram))
    smallest = divergence(counts, low, high, spec, largest_width(histogram))
    largest = max(-histogram.minimum, histogram.maximum)
    for end in np.linspace(largest / 4, largest, 12).tolist():
        a, b = max(histogram.minimum, -end), min(histogram.maximum, end)
        if float(encode_range(a, b, spec).scale) >= largest_width(histogram):
            assert smallest <= divergence(counts, a, b, spec, largest_width(histogram)) * 1.25 + 1e-3


def largest_width(histogram: Histogram) -> float:
    return float(2.0 ** (math.floor(math.log2(max(-histogram.minimum, histogram.maximum))) - 11))


def test_zeros_do_not_count() -> None:
    x = np.maximum(RNG.standard_normal(5000), 0)
    spec = QuantSpec.parse("uint8")
    assert Entropy().range(histogram_of(x), spec) == Entropy().range(histogram_of(np.append(x, np.zeros(9999))), spec)


def test_outliers_are_cut_and_a_full_range_is_kept() -> None:
    spec = QuantSpec.parse("int8")
    low, high = Entropy().range(histogram_of(np.concatenate([RNG.standard_normal(50_000), [300.0]])), spec)
    assert high < 60
    assert low > -60
    uniform = RNG.uniform(-1, 1, 50_000)
    assert Entropy().range(histogram_of(uniform), spec) == (np.float32(uniform.min()), np.float32(uniform.max()))


@pytest.mark.parametrize("values", [[0.0, 0.0], [3.5], [-1e-40], [1e38, -1e38], [1e-38, 1.0]])
def test_tensors_with_next_to_no_values(values: list[float]) -> None:
    histogram = histogram_of(np.float32(values))
    for text in ("uint8", "int4"):
        low, high = Entropy().range(histogram, QuantSpec.parse(text))
        assert histogram.minimum <= low <= high <= histogram.maximum


@pytest.mark.parametrize("name", SHAPES)
def test_noise_in_the_last_bits_does_not_move_the_encoding(name: str) -> None:
    x, spec = SHAPES[name], QuantSpec.parse("uint8")
    noisy = x * (1 + 2e-7 * np.random.default_rng(1).standard_normal(x.size))
    assert encode_range(*Entropy().range(histogram_of(x), spec), spec) == encode_range(
        *Entropy().range(histogram_of(noisy), spec), spec
    )


@pytest.mark.parametrize("text", ["int9", "int16", "uint16", "float8e4m3"])
def test_wider_formats_are_calibrated_by_mse_and_say_so(text: str) -> None:
    spec, histogram = QuantSpec.parse(text), histogram_of(SHAPES["laplace"])
    assert Entropy().range(histogram, spec) == MeanSquareError().range(histogram, spec)
    note = Entropy().note(spec)
    assert note is not None
    assert f"{spec.type_name} is calibrated by mse" in note
    assert Entropy().note(QuantSpec.parse("int8")) is None


def test_entropy_has_no_setting() -> None:
    assert Entropy.from_text(None) == Entropy()
    with pytest.raises(ValueError, match="entropy takes no setting"):
        Entropy.from_text("2")
