"""Ranges of channels do not depend on batching, and come back from arrays."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isobit.errors import DataError
from isobit.graph import Tensor
from isobit.statistics import ChannelRange, Statistics


@given(
    values=st.integers(1, 9).flatmap(lambda n: st.just(np.random.default_rng(n).standard_normal((n, 3, 4)))),
    axis=st.sampled_from([None, 1, 2, -1]),
    cut=st.integers(0, 9),
)
def test_parts_add_up_to_the_whole(values, axis, cut) -> None:
    values = values.astype(np.float32)
    whole, parts, later = ChannelRange(), ChannelRange(), ChannelRange()
    whole.update(values, axis)
    parts.update(values[:cut], axis)
    later.update(values[cut:], axis)
    parts.merge(later)
    moved = values.reshape(1, -1) if axis is None else np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
    for channels in (whole, parts):
        np.testing.assert_array_equal(channels.minimum, moved.min(1))
        np.testing.assert_array_equal(channels.maximum, moved.max(1))
        np.testing.assert_array_equal(channels.largest, np.abs(moved).max(1))
        np.testing.assert_allclose(channels.mean_square, np.square(moved.astype(np.float64)).mean(1))


def test_they_are_saved(tmp_path) -> None:
    ranges = ChannelRange()
    ranges.update(np.arange(12, dtype=np.float32).reshape(2, 6), 1)
    Statistics({Tensor("x"): ranges}).save(tmp_path / "s.npz")
    loaded = Statistics.load(tmp_path / "s.npz")[Tensor("x")]
    assert isinstance(loaded, ChannelRange)
    for name, array in ranges.arrays().items():
        np.testing.assert_array_equal(loaded.arrays()[name], array)


def test_other_channels_do_not_add_up() -> None:
    ranges, five_channels = ChannelRange(), ChannelRange()
    ranges.update(np.ones((2, 3), np.float32), 1)
    five_channels.update(np.ones((2, 4), np.float32), 1)
    with pytest.raises(DataError, match="3 and 4"):
        ranges.merge(five_channels)
