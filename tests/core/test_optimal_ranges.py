"""mse and sqnr against brute force: the values themselves, rounded to the grids of many ranges."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from isobit.calibration import MeanSquareError, SignalToNoise
from isobit.calibration.error import Bins, mean_square_errors
from isobit.calibration.search import TOLERANCE, first_best, thresholds
from isobit.encodings import QuantSpec, encode_range
from isobit.encodings.ranges import Grids, candidate_grids
from isobit.errors import EncodingError, FormatError
from isobit.statistics import Histogram

RNG = np.random.default_rng(0)
SHAPES = {
    "normal": RNG.standard_normal(10_000),
    "relu": np.maximum(RNG.standard_normal(10_000), 0),
    "laplace": RNG.laplace(size=10_000),
    "relu6": np.clip(3 * RNG.standard_normal(10_000), 0, 6),
    "skewed": RNG.gamma(2.0, size=10_000) - 0.3,
    "negative": -RNG.gamma(2.0, size=10_000),
    "outliers": np.concatenate([RNG.standard_normal(10_000), [97.7, -61.3]]),
}


def histogram_of(x: np.ndarray) -> Histogram:
    histogram = Histogram(None)
    histogram.update(np.float32(x).reshape(1, -1))
    return histogram


def true_cost(x: np.ndarray, low: float, high: float, spec: QuantSpec, gamma: float = 1.0) -> float:
    """Mean square error of the values themselves, those outside the grid `gamma` times."""
    encoding = encode_range(low, high, spec)
    error = np.square(encoding.fake_quantize(np.float32(x)).astype(np.float64) - x)
    outside = (x < float(encoding.minimum)) | (x > float(encoding.maximum))
    return float(np.mean(error * np.where(outside, gamma, 1.0)))


@pytest.mark.parametrize("gamma", [1.0, 3.0])
@pytest.mark.parametrize("text", ["uint8", "int8", "uint4", "int4", "int4 strict", "uint3", "int16"])
@pytest.mark.parametrize("name", SHAPES)
def test_no_range_of_a_dense_grid_is_better(name: str, text: str, gamma: float) -> None:
    x, spec = np.float32(SHAPES[name]).astype(np.float64), QuantSpec.parse(text)
    low, high = SignalToNoise(gamma).range(histogram_of(x), spec)
    found = true_cost(x, low, high, spec, gamma)
    shares = np.concatenate([np.geomspace(0.004, 0.25, 6), np.linspace(0.4, 1.0, 7)])
    both = x.min() < 0 < x.max()
    pairs = itertools.product(shares, shares) if both and not spec.symmetric else zip(shares, shares, strict=True)
    best = min(true_cost(x, x.min() * a, x.max() * b, spec, gamma) for a, b in pairs)
    assert found <= best * 1.02  # bins are spread evenly, and the candidates are 1.6 % apart


@given(
    st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=12),
    st.sampled_from(["uint4", "int4", "int8", "uint8", "int3 strict"]),
    st.floats(0.05, 4),
    st.sampled_from([1.0, 3.0]),
)
def test_errors_are_those_of_many_points_in_each_bin(
    values: list[float], text: str, scale: float, gamma: float
) -> None:
    spec = QuantSpec.parse(text)
    zero_point = 0 if spec.symmetric else 3
    grid = Grids(spec, np.array([scale], np.float32), np.array([zero_point], np.int32))
    bins = Bins.of(histogram_of(np.float32(values)))
    total = 0.0
    s = float(np.float32(scale))
    for low, high, count in zip(*bins, strict=True):
        points = low + (np.arange(4000) + 0.5) / 4000 * (high - low)
        steps = np.clip(np.rint(points / s), spec.q_min - zero_point, spec.q_max - zero_point)
        outside = (points / s < spec.q_min - zero_point) | (points / s > spec.q_max - zero_point)
        total += count * np.mean(np.square(points - steps * s) * np.where(outside, gamma, 1.0))
    (found,) = mean_square_errors(bins, grid, gamma)
    assert found == pytest.approx(total / len(values), rel=2e-3, abs=1e-9)


@pytest.mark.parametrize("text", ["uint8", "int4"])
@pytest.mark.parametrize("name", SHAPES)
def test_thinned_bins_tell_grids_apart_as_all_do(name: str, text: str) -> None:
    bins = Bins.of(histogram_of(SHAPES[name]))
    few = bins.thinned()
    assert few.counts.sum() == bins.counts.sum()
    assert few.counts.size < 0.7 * bins.counts.size
    assert np.all(few.low <= few.high)
    assert np.all(few.high[:-1] <= few.low[1:])
    ends = thresholds(float(np.abs(SHAPES[name]).max()), 8, 0.2)
    grids = candidate_grids(np.maximum(bins.low[0], -ends), np.minimum(bins.high[-1], ends), QuantSpec.parse(text))
    np.testing.assert_allclose(mean_square_errors(few, grids), mean_square_errors(bins, grids), rtol=5e-3)


@pytest.mark.parametrize("gamma", [1.0, 3.0])
@pytest.mark.parametrize("text", ["uint8", "int8", "int4 strict", "uint4"])
def test_numpy_finds_the_errors_that_numba_finds(text: str, gamma: float, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(3).standard_normal(3000).astype(np.float32)
    bins = Bins.of(histogram_of(np.append(x, np.float32([0.0, 2.0, 2.0]))))
    ends = np.linspace(0.1, 5, 40)
    grids = candidate_grids(-ends, ends, QuantSpec.parse(text))
    found = mean_square_errors(bins, grids, gamma)
    monkeypatch.setenv("ISOBIT_KERNELS", "numpy")
    np.testing.assert_allclose(found, mean_square_errors(bins, grids, gamma), rtol=1e-9)


def test_sqnr_is_no_worse_than_the_search_that_it_replaces() -> None:
    """17 scales by 21 offsets over the middles of 512 bins, clipped values thrice: what AIMET's scheme searches."""
    spec = QuantSpec.parse("uint8")
    for x in SHAPES.values():
        counts, edges = np.histogram(x, 512)
        middle = (edges[:-1] + edges[1:]) / 2
        low, high = min(x.min(), 0), max(x.max(), 0)
        best, best_range = np.inf, (low, high)
        widest = (high - low) / 255
        for step in (k * widest / 16 for k in range(1, 18)):
            for offset in {*np.rint(np.linspace(-255, 0, 21)), np.rint(low / widest)}:
                first, last = max(offset * step, low), min((offset + 255) * step, high)
                s = (last - first) / 255
                if s <= 0 or first > 0 or last < 0:
                    continue
                start = np.rint(first / s)
                rounded = np.clip(np.rint(middle / s), start, start + 255) * s
                outside = (middle < start * s) | (middle > (start + 255) * s)
                cost = float(counts @ (np.square(rounded - middle) * np.where(outside, 3.0, 1.0)))
                if cost < best:
                    best, best_range = cost, (first, last)
        mine = SignalToNoise().range(histogram_of(x), spec)
        assert true_cost(x, *mine, spec, 3.0) <= true_cost(x, *best_range, spec, 3.0) * 1.02


@pytest.mark.parametrize("scheme", [MeanSquareError(), SignalToNoise()])
@pytest.mark.parametrize("text", ["uint8", "int8", "int4"])
@pytest.mark.parametrize("name", sorted(SHAPES.keys() - {"relu6"}))  # exact values have no noise
def test_noise_in_the_last_bits_does_not_move_the_encoding(
    name: str, text: str, scheme: MeanSquareError | SignalToNoise
) -> None:
    x, spec = SHAPES[name], QuantSpec.parse(text)
    noisy = x * (1 + 2e-7 * np.random.default_rng(1).standard_normal(x.size))
    assert encode_range(*scheme.range(histogram_of(x), spec), spec) == encode_range(
        *scheme.range(histogram_of(noisy), spec), spec
    )


@settings(max_examples=50)
@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=30),
    st.sampled_from(["uint8", "int4", "int16", "float8e4m3", "float8e5m2", "float16", "int32"]),
)
@example([3.82887787453481e16], "uint8")  # its best end is below it
@example([-3.82887787453481e16], "int4")
def test_any_finite_values_have_a_range_about_inside_what_was_seen(values: list[float], text: str) -> None:
    histogram = histogram_of(np.float32(values))
    low, high = SignalToNoise().range(histogram, QuantSpec.parse(text))
    assert min(histogram.minimum, 0) * 1.125 <= low <= max(high, 0)
    assert high <= max(histogram.maximum, 0) * 1.125


def test_float8_loses_no_less_than_by_brute_force() -> None:
    x = np.concatenate([RNG.standard_normal(5000), [4000.0]])
    spec = QuantSpec.parse("float8e4m3")
    _, high = MeanSquareError().range(histogram_of(x), spec)
    errors = {t: float(np.mean(np.square(encode_range(0, t, spec).fake_quantize(np.float32(x)) - x))) for t in
              [high, *np.geomspace(1, 4000, 60)]}  # fmt: skip
    assert errors[high] <= min(errors.values()) * 1.02


@pytest.mark.parametrize("scheme", [MeanSquareError(), SignalToNoise()])
@pytest.mark.parametrize("name", ["normal", "laplace", "relu"])
def test_tails_that_the_counted_elements_missed_count(name: str, scheme: MeanSquareError | SignalToNoise) -> None:
    """One element of 97 is counted: the range must serve all of them nearly as well as one from all of them."""
    spec = QuantSpec.parse("uint8")
    rng = np.random.default_rng(5)
    x = {"normal": rng.standard_normal, "laplace": lambda n: rng.laplace(size=n), "relu": rng.standard_normal}[name](
        200_000
    )
    x = np.float32(np.maximum(x, 0) if name == "relu" else x)
    few = Histogram(None)
    few.absorb(float(x.min()), float(x.max()), x[::97], x.size)
    found, best, full = (
        true_cost(x.astype(np.float64), *bounds, spec)
        for bounds in (scheme.range(few, spec), scheme.range(histogram_of(x), spec), (float(x.min()), float(x.max())))
    )
    assert found <= best * 1.1
    assert found <= full * 1.02


def test_the_tails_are_those_of_an_exponential() -> None:
    histogram = Histogram(None)
    histogram.absorb(-8.0, 5.0, np.float32([0.5, 1.0]), 16)
    bins = Bins.of(histogram)
    assert bins.counts.tolist() == [0.125, 0.25, 0.5, 1, 1, 0.5, 0.25, 0.125]
    assert (bins.low[0], bins.high[-1]) == (-8.0, 5.0)
    assert np.all(bins.high[:-1] <= bins.low[1:])


def test_the_widest_of_the_good_ones_is_taken() -> None:
    assert first_best(np.array([2.0, 1.0009, 1.0, 1.0])) == 1
    assert first_best(np.array([2.0, 1.0 + 2 * TOLERANCE, 1.0])) == 2
    assert first_best(np.array([0.0, 0.0])) == 0


def test_thresholds_do_not_depend_on_the_data() -> None:
    assert thresholds(1.3, 4, 0.5).tolist() == [1.3, 1.25, 1.0, 0.875, 0.75, 0.625, 0.5]
    assert thresholds(1.25, 4, 1.0).tolist() == [1.25, 1.0]
    assert thresholds(3e-39, 2, 3e-39).tolist() == [3e-39]


def test_settings() -> None:
    assert SignalToNoise.from_text("2.5") == SignalToNoise(2.5)
    assert SignalToNoise.from_text(None) == SignalToNoise(3.0)
    for gamma in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(FormatError, match="the weight of clipping is a positive number"):
            SignalToNoise(gamma)
    with pytest.raises(ValueError, match="mse takes no setting"):
        MeanSquareError.from_text("3")


def test_a_grid_without_negative_levels_says_so() -> None:
    with pytest.raises(EncodingError, match="no negative levels"):
        MeanSquareError().range(histogram_of(np.float32([-1, 1])), QuantSpec.parse("uint8 symmetric"))
