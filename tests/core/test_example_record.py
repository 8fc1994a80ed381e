"""An example batch through JSON: the structure, shapes and types stay, and of long arrays no value does."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from isobit.data import example_from_record, example_to_record
from isobit.errors import DataError

RNG = np.random.default_rng(0)


def through_json(example: Any) -> Any:
    return example_from_record(json.loads(json.dumps(example_to_record(example))))


@pytest.mark.parametrize(
    "example",
    [
        RNG.integers(0, 9, (2, 7)),
        np.ones((2, 5), bool),
        (np.float32(2.5).reshape(()), [None, 3, True, "left"]),
        {"ids": np.arange(6, dtype=np.int32).reshape(2, 3), "scale": 0.5, "empty": np.zeros((0, 3), np.float32)},
    ],
    ids=["tokens", "mask", "nested", "dict"],
)
def test_what_may_decide_a_branch_is_kept(example: Any) -> None:
    np.testing.assert_equal(through_json(example), example)


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "uint8", "int64"])
def test_signal_is_drawn_anew_in_its_range(dtype: str) -> None:
    signal = (50 + 10 * RNG.standard_normal((2, 3, 32, 32))).astype(dtype)
    found = through_json(OrderedDict(image=signal))["image"]
    assert (found.shape, found.dtype) == (signal.shape, signal.dtype)
    assert found.min() >= signal.min()
    assert found.max() <= signal.max()
    assert not np.array_equal(found, signal)
    np.testing.assert_array_equal(found, through_json({"image": signal})["image"])


def test_values_without_a_range() -> None:
    assert through_json(np.full((4, 9), np.nan, np.float32)).shape == (4, 9)
    assert example_from_record(None) is None


@dataclass
class Batch:
    ids: Any
    names: Any


def test_own_classes_are_known_by_their_fields_at_the_top_alone() -> None:
    np.testing.assert_equal(through_json(Batch(np.arange(3), ["a"])), {"ids": np.arange(3), "names": ["a"]})
    assert example_to_record([Batch(np.arange(3), ["a"])]) is None
    assert example_to_record(np.array(["a", "b"])) is None


@pytest.mark.parametrize(
    "record", [3, {}, {"list": 3}, {"other": []}, {"array": {"shape": [2], "dtype": "float32", "values": [1, 2, 3]}},
               {"array": {"shape": [1 << 60], "dtype": "float32", "range": [0, 1]}}],
)  # fmt: skip
def test_damaged_records_are_errors(record: Any) -> None:
    with pytest.raises(DataError, match="damaged"):
        example_from_record(record)
