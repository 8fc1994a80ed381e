"""Statistics: exact counts, whatever the batching, the order and the splitting; files that survive or are refused."""

from __future__ import annotations

import io
import re
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from isobit.errors import DataError, OutputError
from isobit.graph import Input, Tensor, Weight
from isobit.statistics import Histogram, MinMax, Moments, Statistics, sample

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
anything = st.floats(width=32)


def samples_of(elements: st.SearchStrategy[float]) -> st.SearchStrategy[np.ndarray]:
    shapes = hnp.array_shapes(min_dims=2, max_dims=4, max_side=6)
    return hnp.arrays(np.float32, shapes, elements=elements)


def top_bits(values: np.ndarray) -> dict[int, int]:
    """How many finite values have each pattern of sign, exponent and seven mantissa bits: one by one."""
    counts: Counter[int] = Counter()
    for value in values.reshape(-1):
        if np.isfinite(value):
            counts[int.from_bytes(np.float32(value).tobytes(), "little") >> 16] += 1
    return dict(counts)


def counts_of(histogram: Histogram) -> dict[int, int]:
    arrays = histogram.arrays()
    return dict(zip(arrays["keys"].tolist(), arrays["counts"].tolist(), strict=True))


def histogram_of(*batches: np.ndarray, axis: int | None = None, limit: int | None = None) -> Histogram:
    histogram = Histogram(limit)
    for batch in batches:
        histogram.update(batch, axis)
    return histogram


# --- histogram ------------------------------------------------------------------------------------------------------


@given(samples_of(anything))
def test_counts_are_those_of_a_loop(x: np.ndarray) -> None:
    histogram = histogram_of(x)
    assert counts_of(histogram) == top_bits(x)
    assert histogram.elements == x.size
    assert histogram.non_finite == sum(not np.isfinite(v) for v in x.reshape(-1))
    finite = [float(v) for v in x.reshape(-1) if np.isfinite(v)]
    assert histogram.is_empty == (not finite)
    assert histogram.counted == len(finite)
    if finite:
        assert (histogram.minimum, histogram.maximum) == (min(finite), max(finite))


@given(samples_of(anything), st.data())
def test_batching_order_and_splitting_do_not_matter(x: np.ndarray, data: st.DataObject) -> None:
    axis, limit = data.draw(st.sampled_from([None, 1])), data.draw(st.sampled_from([None, 3, 20]))
    whole = histogram_of(x, axis=axis, limit=limit)
    order = data.draw(st.permutations(range(len(x))))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(x)), max_size=4)))
    batches = [part for part in np.split(x[order], cuts) if len(part)]
    assert histogram_of(*batches, axis=axis, limit=limit) == whole

    parts = [histogram_of(batch, axis=axis, limit=limit) for batch in batches]
    merged = Histogram(limit)
    for part in data.draw(st.permutations(parts)):
        merged.merge(part)
    assert merged == whole


@given(samples_of(anything), st.integers(1, 30), st.sampled_from([None, 1]))
def test_bounds_cover_all_elements_and_bins_the_chosen_ones(x: np.ndarray, limit: int, axis: int | None) -> None:
    histogram = histogram_of(x, axis=axis, limit=limit)
    everything = histogram_of(x)
    assert counts_of(histogram) == top_bits(sample(x, axis, limit))
    assert (histogram.minimum, histogram.maximum) == (everything.minimum, everything.maximum)
    assert (histogram.elements, histogram.non_finite) == (everything.elements, everything.non_finite)


@given(samples_of(finite), st.sampled_from([None, 1]))
def test_a_batch_reduced_elsewhere_counts_the_same(x: np.ndarray, axis: int | None) -> None:
    histogram = Histogram(5)
    histogram.absorb(float(x.min()), float(x.max()), sample(x, axis, 5), x.size)
    assert histogram == histogram_of(x, axis=axis, limit=5)


@pytest.mark.parametrize(("low", "high"), [(-np.inf, 1.0), (0.0, np.inf), (np.nan, np.nan)])
def test_bounds_reduced_elsewhere_that_are_not_finite_are_noticed(low: float, high: float) -> None:
    histogram = Histogram()
    histogram.absorb(low, high, np.ones(4, np.float32), 100)
    assert histogram.non_finite > 0


def test_a_chosen_element_that_is_not_finite_is_noticed() -> None:
    histogram = Histogram()
    histogram.absorb(0.0, 1.0, np.float32([1.0, np.nan]), 2)  # the minimum of some runtimes ignores NaN
    assert histogram.non_finite == 1


def test_large_arrays_are_counted_like_small_ones() -> None:
    """The kernel counts into four tables from 2**18 elements on."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((1, 4 * 65536 + 3)) * 10.0 ** rng.integers(-30, 30)).astype(np.float32)
    keys, counts = np.unique(x.view(np.uint32) >> 16, return_counts=True)
    assert counts_of(histogram_of(x)) == dict(zip(keys.tolist(), counts.tolist(), strict=True))


def test_counts_do_not_overflow_32_bits() -> None:
    histogram = histogram_of(np.ones((1, 2), np.float32))
    for _ in range(33):  # doubling
        histogram.merge(Histogram.from_arrays(histogram.arrays()))
    assert histogram.counted == histogram.elements == 2**34


def test_a_million_batches_stay_exact() -> None:
    """Counts far beyond 2**53 add up to the last one: int64 all the way, through files too."""
    table = np.zeros(1 << 16, np.int64)
    table[0x3F80] = 3 * 2**38 + 1  # of 1.0 in one batch
    batch = Histogram(None)
    batch.absorb(0.0, 1.0, np.zeros(0, np.float32), int(table.sum()))
    batch.add_counts(table)
    total, step = Histogram(None), Histogram.from_arrays(batch.arrays())
    for bit in range(20):  # 1,000,000 merges by doubling
        if 1_000_000 >> bit & 1:
            total.merge(step)
        step.merge(Histogram.from_arrays(step.arrays()))
    assert total.elements == total.counted == 1_000_000 * (3 * 2**38 + 1)
    assert Histogram.from_arrays(total.arrays()) == total


@given(samples_of(finite))
def test_bins_are_sorted_cut_to_the_range_and_hold_everything(x: np.ndarray) -> None:
    histogram = histogram_of(x)
    low, high, counts = histogram.bins()
    assert counts.sum() == x.size
    assert np.all(low <= high)
    assert np.all(high[:-1] <= low[1:])
    assert low[0] == x.min()
    assert high[-1] == x.max()
    for value in x.reshape(-1).astype(np.float64):
        assert np.any((low <= value) & (value <= high))
    width = high - low
    assert np.all(width <= np.maximum(np.maximum(abs(low), abs(high)) / 128, 2.0**-126))


def test_an_empty_histogram() -> None:
    histogram = Histogram()
    histogram.update(np.zeros((0, 3), np.float32))
    assert histogram.is_empty
    assert histogram.bins()[2].size == 0
    assert histogram == Histogram()
    assert histogram != Histogram(None)
    assert histogram != 3


def test_histograms_of_other_limits_do_not_add_up() -> None:
    with pytest.raises(DataError, match="sampling limits 5 and None do not add up"):
        Histogram(5).merge(Histogram(None))


def test_other_element_types_are_counted_as_float32() -> None:
    x = np.array([[0.1, 2.0, -7.0]], np.float64)
    assert histogram_of(x) == histogram_of(x.astype(np.float32))


# --- min-max and moments --------------------------------------------------------------------------------------------


def test_minmax_keeps_batches_in_order() -> None:
    first, second = MinMax(), MinMax()
    first.update(np.float32([[1, 2], [-3, 0]]))
    first.update(np.zeros((0, 2), np.float32))
    second.update(np.float32([[5, 5]]))
    first.merge(second)
    assert first.batches == [(-3.0, 2.0), (5.0, 5.0)]
    assert MinMax.from_arrays(first.arrays()).batches == first.batches
    assert MinMax.from_arrays(MinMax().arrays()).batches == []


def test_bounds_of_the_last_batches_are_kept_however_they_are_merged() -> None:
    numbers = np.arange(2.5 * MinMax.WINDOW)
    whole, merged = MinMax(), MinMax()
    for part in np.array_split(numbers, 7):
        batch = MinMax()
        for number in part.tolist():
            whole.add(-number, number)
            batch.add(-number, number)
        merged.merge(MinMax.from_arrays(batch.arrays()))
    assert merged.batches == whole.batches
    assert len(whole.batches) == MinMax.WINDOW
    assert whole.batches[-1] == (-numbers[-1], numbers[-1])


def test_bounds_of_two_tensors_are_joined_batch_by_batch() -> None:
    first, second = histogram_of(np.float32([[1.0]]), np.float32([[5.0]])), histogram_of(np.float32([[-2.0]]))
    first.join(second)
    assert first.batch_bounds.batches == [(1.0, 1.0), (-2.0, 5.0)], "the last batches are the same ones"
    assert (first.elements, first.minimum) == (3, -2.0)


@pytest.mark.parametrize("axis", [None, 0, 1, 2])
def test_moments_of_each_channel(axis: int | None) -> None:
    rng = np.random.default_rng(0)
    batches = [rng.standard_normal((2, 3, 4)).astype(np.float32) for _ in range(3)]
    parts = [Moments(), Moments()]
    for batch, part in zip(batches, (parts[0], parts[0], parts[1]), strict=True):
        part.update(batch, axis)
    parts[0].merge(parts[1])
    joined = np.concatenate(batches, axis=0 if axis != 0 else 1).astype(np.float64)
    channels = [joined] if axis is None else [joined.take(c, axis) for c in range(joined.shape[axis])]
    np.testing.assert_allclose(parts[0].mean, [c.mean() for c in channels], rtol=1e-12)
    np.testing.assert_allclose(parts[0].variance, [c.var() for c in channels], rtol=1e-12)


def test_moments_merged_in_order_have_the_same_bits() -> None:
    rng = np.random.default_rng(1)
    batches = [(rng.standard_normal((2, 5)) * 10.0**i).astype(np.float32) for i in range(6)]
    whole, merged = Moments(), Moments()
    for batch in batches:
        whole.update(batch, 1)
        part = Moments()
        part.update(batch, 1)
        merged.merge(Moments.from_arrays(part.arrays()))
    merged.merge(Moments())
    assert merged.count == whole.count
    np.testing.assert_array_equal(merged.mean, whole.mean)
    np.testing.assert_array_equal(merged.variance, whole.variance)


def test_moments_of_other_channels_do_not_add_up() -> None:
    moments = Moments()
    moments.update(np.zeros((1, 3), np.float32), 1)
    with pytest.raises(DataError, match="sums of 3 and 4 channels do not add up"):
        moments.update(np.zeros((1, 4), np.float32), 1)


# --- the statistics of a model --------------------------------------------------------------------------------------


def model_statistics() -> Statistics:
    x = np.random.default_rng(0).standard_normal((4, 3, 2)).astype(np.float32)
    minmax, moments = MinMax(), Moments()
    minmax.update(x)
    moments.update(x, 1)
    return Statistics(
        {
            Tensor("x"): histogram_of(x, limit=8192),
            Tensor("weird ✓/name:1"): histogram_of(-x, x * 1e30),
            Input("conv", 1): minmax,
            Weight("w"): moments,
        }
    )


def assert_same(a: Statistics, b: Statistics) -> None:
    assert list(a) == list(b)
    for site, reducer in a.items():
        first, second = reducer.arrays(), b[site].arrays()
        assert first.keys() == second.keys()
        for name, array in first.items():
            np.testing.assert_array_equal(array, second[name], err_msg=f"{site} {name}")
            assert array.dtype == second[name].dtype


def test_files_come_back_the_same(tmp_path: Path) -> None:
    statistics = model_statistics()
    statistics.save(tmp_path / "s.npz")
    loaded = Statistics.load(tmp_path / "s.npz")
    assert_same(statistics, loaded)
    assert loaded.histogram(Tensor("x")).limit == 8192
    assert [path.name for path in tmp_path.iterdir()] == ["s.npz"]
    loaded.merge(statistics)
    assert loaded.histogram(Tensor("x")).elements == 2 * statistics.histogram(Tensor("x")).elements


def test_no_statistics_are_statistics(tmp_path: Path) -> None:
    Statistics().save(tmp_path / "s.npz")
    assert len(Statistics.load(tmp_path / "s.npz")) == 0


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot write"):
        model_statistics().save(tmp_path / "file" / "s.npz")


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def header(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)


GOOD = '{"format": "isobit statistics", "version": 2, "parts": [{"sites": [["tensor", "x", 0, "%s"]]}]}'


def damaged_files() -> dict[str, bytes]:
    good = model_statistics().to_bytes()
    flipped = bytearray(good)
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        info = archive.getinfo("0.0.counts.npy")
    flipped[info.header_offset + 30 + len(info.filename) + 20 + info.compress_size // 2] ^= 0xFF
    npy = io.BytesIO()
    np.save(npy, np.zeros(3))
    return {
        "empty": b"",
        "text": b"hello",
        "truncated": good[: len(good) // 2],
        "cut at the end": good[:-5],
        "a flipped byte": bytes(flipped),
        "an npy": npy.getvalue(),
        "other npz": npz(x=np.zeros(3)),
        "header no JSON": npz(header=header("{")),
        "header not UTF-8": npz(header=np.uint8([255, 254])),
        "header a list": npz(header=header("[]")),
        "other format": npz(header=header('{"format": "x", "version": 2, "parts": [{"sites": []}]}')),
        "other version": npz(header=header('{"format": "isobit statistics", "version": 1, "parts": []}')),
        "no sites": npz(header=header('{"format": "isobit statistics", "version": 2}')),
        "sites of numbers": npz(
            header=header('{"format": "isobit statistics", "version": 2, "parts": [{"sites": [1]}]}')
        ),
        "unknown kind of site": npz(header=header(GOOD.replace("tensor", "node") % "minmax")),
        "unknown reducer": npz(header=header(GOOD % "sums")),
        "arrays missing": npz(header=header(GOOD % "histogram")),
        "moments of nothing": npz(
            header=header(GOOD % "moments"),
            **{"0.0.count": np.zeros(0, np.int64), "0.0.total": np.zeros(1), "0.0.square": np.zeros(1)},
        ),
        "bins without counts": npz(
            header=header(GOOD % "histogram"),
            **{
                "0.0.bounds": np.zeros(2),
                "0.0.totals": np.zeros(3),
                "0.0.keys": np.zeros(2),
                "0.0.counts": np.zeros(1),
            },
        ),
        "pickled": npz(header=np.array([{"a": 1}], object)),
    }


@pytest.mark.parametrize("name", damaged_files())
def test_damaged_files_are_refused_by_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / "bad.npz"
    path.write_bytes(damaged_files()[name])
    with pytest.raises(DataError, match=re.escape(str(path))):
        Statistics.load(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere.npz"):
        Statistics.load(tmp_path / "nowhere.npz")


def test_statistics_of_other_sites_do_not_merge() -> None:
    a, b = Statistics({Tensor("a"): Histogram()}), Statistics({Tensor("b"): Histogram()})
    with pytest.raises(DataError, match="different sites: '[ab]' is in one of them only"):
        a.merge(b)


@pytest.mark.parametrize(
    ("incompatible", "message"),
    [(MinMax(), "of different kinds: Histogram and MinMax"), (Histogram(7), "sampling limits 8192 and 7")],
)
def test_a_refused_merge_changes_nothing(incompatible: Histogram | MinMax, message: str) -> None:
    x = np.ones((1, 3), np.float32)
    first = histogram_of(x, limit=8192)
    a = Statistics({Tensor("a"): first, Tensor("b"): Histogram()})
    b = Statistics({Tensor("a"): histogram_of(x, limit=8192), Tensor("b"): incompatible})
    with pytest.raises(DataError, match=message):
        a.merge(b)
    assert first.elements == 3


def test_an_unseen_tensor_says_so() -> None:
    statistics = Statistics({Tensor("a"): Histogram(), Tensor("b"): MinMax()})
    for name in ("a", "b", "c"):
        with pytest.raises(DataError, match=f"no values of '{name}' were seen: calibrate first"):
            statistics.histogram(Tensor(name))


def test_counts_made_elsewhere():
    """`absorb` and `add_counts` together are `update`; counts of infinity and NaN are returned and not kept."""
    values = np.array([[0.5, -3.0, 0.0, 7.25], [-0.0, 1e-3, 0.5, -2.0]], np.float32)
    table = np.zeros(1 << 16, np.int64)
    for value in values.reshape(-1):
        table[int(value.view(np.uint32)) >> 16] += 1
    counted_elsewhere, counted_here = Histogram(), Histogram()
    counted_elsewhere.absorb(-3.0, 7.25, np.zeros(0, np.float32), values.size)
    assert counted_elsewhere.add_counts(table) == 0
    counted_here.update(values)
    assert counted_elsewhere == counted_here
    table[:] = 0
    table[[0x7F80, 0xFFC0]] = 2, 3
    assert counted_elsewhere.add_counts(table) == 5
    assert counted_elsewhere == counted_here


def test_zero_bounds_have_one_sign():
    histogram = Histogram()
    histogram.update(np.array([[-0.0, 1.0]], np.float32))
    histogram.update(np.array([[0.0, 1.0]], np.float32))
    assert not np.signbit(histogram.minimum)
