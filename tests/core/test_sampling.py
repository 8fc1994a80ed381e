"""Which elements of a large tensor are counted."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isobit.statistics import sample, sampling_of
from isobit.statistics.sampling import SAMPLE_LIMIT

shapes = st.lists(st.integers(1, 12), min_size=1, max_size=4).map(tuple)


def numbered(batch: int, shape: tuple[int, ...]) -> np.ndarray:
    """A batch whose every element is its own position."""
    return np.arange(batch * math.prod(shape), dtype=np.float32).reshape(batch, *shape)


@given(batch=st.integers(1, 5), shape=shapes, axis=st.sampled_from([None, 1, 2]), limit=st.integers(1, 200))
def test_positions_are_the_canonical_ones(batch: int, shape: tuple[int, ...], axis: int | None, limit: int) -> None:
    x = numbered(batch, shape)
    step = sampling_of(x.shape, axis, limit).step
    expected = []
    for index in np.ndindex(x.shape):
        inside = np.ravel_multi_index(index[1:], shape)
        if axis == 1 and len(shape) > 1:  # all channels at every k-th position in space
            inside = inside % math.prod(shape[1:])
        if inside % step == 0:
            expected.append(x[index])
    chosen = sample(x, axis, limit)
    assert sorted(chosen.reshape(-1).tolist()) == expected
    assert chosen.flags.c_contiguous


@given(batch=st.integers(1, 5), shape=shapes, axis=st.sampled_from([None, 1]), limit=st.integers(1, 200))
def test_a_sample_is_chosen_alike_in_every_batch(
    batch: int, shape: tuple[int, ...], axis: int | None, limit: int
) -> None:
    x = numbered(batch, shape)
    whole = sample(x, axis, limit)
    for i in range(batch):
        np.testing.assert_array_equal(sample(x[i : i + 1], axis, limit)[0], whole[i])


@given(shape=st.lists(st.integers(1, 300), min_size=1, max_size=3).map(tuple), axis=st.sampled_from([None, 1]))
def test_the_step_is_coprime_to_every_axis_it_runs_over(shape: tuple[int, ...], axis: int | None) -> None:
    chosen = sampling_of((1, *shape), axis)
    size = math.prod(shape)
    if size <= SAMPLE_LIMIT:
        assert chosen.step == 1
        return
    runs_over = shape[1:] if chosen.spatial else shape
    assert chosen.spatial == (axis == 1 and len(shape) > 1)
    assert all(math.gcd(chosen.step, n) == 1 for n in runs_over)
    assert chosen.positions == math.prod(runs_over)
    counted = -(-chosen.positions // chosen.step) * (shape[0] if chosen.spatial else 1)
    assert counted <= max(SAMPLE_LIMIT, shape[0] if chosen.spatial else 1)


def test_every_channel_of_a_sequence_is_seen() -> None:
    """768 features would meet a step of 3 in a third of them only."""
    x = np.broadcast_to(np.arange(768, dtype=np.float32), (1, 32, 768))
    assert np.unique(sample(x, 2)).size == 768


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 4), (2, 90, 90)])
def test_everything_is_counted_when_asked(shape: tuple[int, ...]) -> None:
    x = np.zeros(shape, np.float32)
    assert sample(x, None, None).size == x.size


@pytest.mark.parametrize("shape", [(), (5,), (2, 3)])
def test_small_tensors_are_taken_whole(shape: tuple[int, ...]) -> None:
    x = np.zeros(shape, np.float32)
    assert sample(x, None).size == x.size
