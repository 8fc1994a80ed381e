"""Data of every kind becomes checked batches, or an error that says what and where."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sketch import Sketch

from isobit.data import Dataset, example_of, to_numpy
from isobit.errors import DataError
from isobit.graph import Graph


def graph_of(**inputs: tuple[Any, ...]) -> Graph:
    """A graph of inputs alone: a shape, then the element type if it is not float32."""
    sketch = Sketch()
    for name, (shape, *dtype) in inputs.items():
        sketch.input(name, *shape, dtype=dtype[0] if dtype else "float32")
    return sketch.graph()


ONE = graph_of(x=(("N", 3),))
TWO = graph_of(ids=(("N", 4), "int64"), mask=(("N", 4),))
FIXED = graph_of(x=((4, 3),))

ROWS = np.arange(30, dtype=np.float32).reshape(10, 3)


class FakeTensor:
    """What the data layer asks of a torch tensor."""

    shape, dtype = (10, 3), "float32"

    def detach(self) -> FakeTensor:
        return self

    def cpu(self) -> FakeTensor:
        return self

    def numpy(self) -> np.ndarray:
        return ROWS


class Loader:
    """A re-iterable loader of (input, label) pairs."""

    def __iter__(self) -> Iterator[tuple[np.ndarray, int]]:
        for start in range(0, 10, 4):
            yield ROWS[start : start + 4], 7

    def __len__(self) -> int:
        return 3


@pytest.mark.parametrize(
    ("source", "sizes"),
    [
        (ROWS, [4, 4, 2]),
        (ROWS.astype(np.float64), [4, 4, 2]),
        (ROWS.astype(np.float16), [4, 4, 2]),
        ({"x": ROWS}, [4, 4, 2]),
        ({"x": ROWS.tolist()}, [4, 4, 2]),
        (FakeTensor(), [4, 4, 2]),
        ([ROWS[:3], ROWS[3:]], [3, 7]),
        ([(ROWS[:3],), [ROWS[3:]]], [3, 7]),
        ([{"x": ROWS[:3]}, {"x": ROWS[3:]}], [3, 7]),
        (Loader(), [4, 4, 2]),
        (lambda: iter(Loader()), [4, 4, 2]),
        (lambda: [ROWS], [10]),
        (iter(Loader()), [4, 4, 2]),
    ],
)
def test_every_kind_of_source(source: Any, sizes: list[int]) -> None:
    batches = list(Dataset(source, ONE, batch_size=4))
    assert [len(batch["x"]) for batch in batches] == sizes
    assert all(batch["x"].dtype == np.float32 and batch["x"].flags.c_contiguous for batch in batches)
    np.testing.assert_array_equal(np.concatenate([batch["x"] for batch in batches]), ROWS)


@pytest.mark.parametrize(
    ("source", "length"), [(ROWS, 3), ({"x": ROWS}, 3), ([ROWS] * 5, 5), (Loader(), 3), (lambda: [ROWS], 0)]
)
def test_length_where_it_is_known(source: Any, length: int) -> None:
    assert len(Dataset(source, ONE, batch_size=4)) == length


def test_elements_of_a_tuple_go_to_the_inputs_in_order() -> None:
    ids, mask, label = np.zeros((2, 4), np.int64), np.ones((2, 4), np.float32), np.int64(1)
    dataset = Dataset([(ids, mask, label)], TWO)
    (batch,) = dataset
    np.testing.assert_array_equal(batch["mask"], mask)
    assert list(dataset.notes) == ["batches hold 3 elements; the first 2 went to ids, mask"]


def test_what_the_model_does_not_read_is_noted_once() -> None:
    dataset = Dataset([{"x": ROWS, "label": ROWS}] * 3, ONE)
    list(dataset)
    assert list(dataset.notes) == ["the data also holds label, which the model does not read"]


def test_inputs_picks_from_a_batch() -> None:
    dataset = Dataset([{"image": ROWS, "label": 3}], ONE, inputs=lambda batch: batch["image"])
    np.testing.assert_array_equal(next(iter(dataset))["x"], ROWS)


def test_a_fixed_batch_is_kept_and_the_rest_noted() -> None:
    dataset = Dataset(ROWS, FIXED, batch_size=32)
    assert [len(batch["x"]) for batch in dataset] == [4, 4]
    assert list(dataset.notes) == ["the last 2 sample(s) do not fill the model's fixed batch of 4: left out"]


def test_integers_of_another_width_are_converted() -> None:
    (batch,) = Dataset([(np.zeros((1, 4), np.int32), np.zeros((1, 4), np.float32))], TWO)
    assert batch["ids"].dtype == np.int64


def test_a_scalar_input_stays_a_scalar() -> None:
    graph = graph_of(x=(("N", 3),), temperature=((),))
    (batch,) = Dataset([{"x": ROWS, "temperature": np.float32(0.5)}], graph)
    assert batch["temperature"].shape == ()


def test_data_goes_round_again_or_says_that_it_cannot() -> None:
    for again in (ROWS, [ROWS], Loader(), lambda: iter([ROWS])):
        dataset = Dataset(again, ONE)
        dataset.require_passes(5, "the search")
        assert len(list(dataset)) == len(list(dataset)) > 0
        np.testing.assert_array_equal(dataset.first()["x"][0], ROWS[0])
    once = Dataset(iter([ROWS]), ONE)
    once.require_passes(1, "calibration")
    with pytest.raises(DataError, match="the search goes through the data 2 times, and an iterator serves once"):
        once.require_passes(2, "the search")
    with pytest.raises(DataError, match="example inputs cannot be taken from an iterator"):
        once.first()
    assert len(list(once)) == 1
    with pytest.raises(DataError, match="used up by an earlier pass: pass a list or a factory"):
        list(once)
    with pytest.raises(DataError, match="an iterator serves once"):
        once.require_passes(1, "calibration")


def _refilled(buffer: np.ndarray) -> Iterator[np.ndarray]:
    """Batches of one row, all in the same memory, as of a camera or a stream that is read into one array."""
    for row in ROWS:
        buffer[:] = row
        yield buffer


def test_batches_that_share_one_memory_are_held_apart() -> None:
    """Passes hold several batches: the first ones, to judge by, and those that run together."""
    buffer = np.zeros((1, 3), np.float32)

    def into_buffer(row: np.ndarray) -> np.ndarray:
        buffer[:] = row
        return buffer

    for dataset in (
        Dataset(_refilled(buffer), ONE),
        Dataset(lambda: _refilled(buffer), ONE),
        Dataset(list(ROWS), ONE, inputs=into_buffer),
    ):
        np.testing.assert_array_equal([batch["x"][0] for batch in list(dataset)], ROWS)
        np.testing.assert_array_equal([batch["x"][0] for batch in dataset.head], ROWS)


SIDE = np.arange(5, dtype=np.float32)


@pytest.mark.parametrize(
    ("side", "value"),
    [
        (((),), np.float32(0.5)),
        (((),), np.array(0.5, np.float32)),
        (((),), 2),
        (((), "int64"), 16000),
        (((5,),), SIDE),
        ((("K",),), SIDE),
        ((("K", "N"),), np.zeros((0, 10), np.float32)),
    ],
)
def test_a_side_input_of_a_whole_set_goes_to_each_batch(side: tuple[Any, ...], value: Any) -> None:
    """Numbers, tables and empty memories hold no samples, or hold them on another axis."""
    dataset = Dataset({"x": ROWS, "side": value}, graph_of(x=(("N", 3),), side=side), batch_size=4)
    batches = list(dataset)
    assert len(batches) == len(dataset) == 3
    np.testing.assert_array_equal(np.concatenate([batch["x"] for batch in batches]), ROWS)
    for batch in batches:
        if side[0] == ("K", "N"):
            assert batch["side"].shape == (0, len(batch["x"]))
        else:
            np.testing.assert_array_equal(batch["side"], value)


def test_a_model_for_one_sample_has_side_inputs_too() -> None:
    graph = graph_of(x=((1, 3),), rate=((1,),))
    batches = list(Dataset({"x": ROWS, "rate": SIDE[1:2]}, graph))
    assert len(batches) == 10
    assert all(batch["rate"] == SIDE[1] for batch in batches)


def test_samples_lie_where_the_batch_is() -> None:
    """The state of a recurrent layer has its layers in front of the samples."""
    graph = graph_of(x=(("N", 3),), state=((2, "N", 4),))
    state = np.arange(80, dtype=np.float32).reshape(2, 10, 4)
    batches = list(Dataset({"x": ROWS, "state": state}, graph, batch_size=4))
    np.testing.assert_array_equal(np.concatenate([batch["state"] for batch in batches], axis=1), state)
    with pytest.raises(DataError, match="different numbers of samples"):
        list(Dataset([{"x": ROWS, "state": state[:, :3]}], graph))


def test_what_is_empty_before_the_first_step_is_no_error() -> None:
    graph = graph_of(x=(("N", 3),), past=(("N", "past", 4),))
    (batch,) = Dataset([{"x": ROWS, "past": np.zeros((10, 0, 4), np.float32)}], graph)
    assert batch["past"].shape == (10, 0, 4)


BAD = ROWS.copy()
BAD[4, 1] = np.nan
INFINITE = ROWS.copy()
INFINITE[0, 0] = -np.inf
IDS, MASK = np.zeros((2, 4), np.int64), np.ones((2, 4), np.float32)


@pytest.mark.parametrize(
    ("source", "graph", "message"),
    [
        ([], ONE, "the data set is empty"),
        (np.zeros((0, 3), np.float32), ONE, "the data set is empty"),
        (lambda: [], ONE, "the data set is empty"),
        (3, ONE, "data must be batches, an array, a dict of arrays or a callable, not int"),
        (lambda: 3, ONE, "not int"),
        ("images/", ONE, "data is a text"),
        (b"images", ONE, "data is a text"),
        (ROWS, TWO, "one array for a model with 2 inputs (ids, mask): pass a dict"),
        ({"y": ROWS}, ONE, "the data has no array for input 'x'"),
        ({"X": ROWS}, ONE, "it holds: X"),
        ([{"mask": MASK, "idz": IDS}], TWO, "batch 0 has no array for input 'ids' (did you mean 'idz'?)"),
        ([{}], ONE, "it holds: nothing"),
        ({"ids": IDS, "mask": MASK[:1]}, TWO, "different numbers of samples: {'ids': 2, 'mask': 1}"),
        ([(IDS, MASK[:1])], TWO, "the inputs in batch 0 hold different numbers of samples"),
        ([(IDS, MASK), (IDS,)], TWO, "batch 1 holds 1 array(s), and the model has 2 input(s): ids, mask; a list"),
        ([()], ONE, "batch 0 holds 0 array(s), and the model has 1 input(s): x; a list"),
        ([3], ONE, "batch 0 is a int"),
        (["a.png"], ONE, "batch 0 is a str"),
        ([ROWS, ROWS.astype(int)], ONE, "input 'x' in batch 1 is int64, and the model takes float32: convert it"),
        ([np.full((1, 3), "a")], ONE, "the model takes float32"),
        ([ROWS > 3], ONE, "is bool"),
        ([(IDS + 0.5, MASK)], TWO, "input 'ids' in batch 0 is float64, and the model takes int64"),
        ([ROWS, BAD], ONE, "input 'x' in batch 1 holds NaN"),
        ([INFINITE], ONE, "input 'x' in batch 0 holds infinity"),
        ([ROWS.astype(np.float64) * 1e300], ONE, "input 'x' in batch 0 holds values too large for float32"),
        ([ROWS[:, :2]], ONE, "input 'x' in batch 0 has shape (10, 2), and the model takes (N, 3)"),
        ([ROWS[0]], ONE, "has shape (3,)"),
        ([ROWS[None]], ONE, "has shape (1, 10, 3)"),
        ([ROWS], FIXED, "has shape (10, 3), and the model takes (4, 3)"),
        ([ROWS[:0]], ONE, "input 'x' in batch 0 is empty, shape (0, 3)"),
        ([{"x": [[1.0, 2.0, 3.0], [4.0]]}], ONE, "cannot make an array of a list"),
        ([(object(),)], ONE, "cannot make an array of a object"),
    ],
)
def test_bad_data_is_said_with_its_place(source: Any, graph: Graph, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        list(Dataset(source, graph))


@pytest.mark.parametrize(("dtype", "value"), [("uint8", 300), ("uint8", -1), ("int32", 2**40)])
def test_integers_out_of_range_are_no_other_integers(dtype: str, value: int) -> None:
    graph = graph_of(x=(("N", 1), dtype))
    with pytest.raises(DataError, match=f"input 'x' in batch 0 holds values outside the range of {dtype}"):
        list(Dataset([np.array([[value]])], graph))


def test_non_finite_values_pass_when_asked() -> None:
    (batch,) = Dataset([BAD], ONE, ignore_non_finite=True)
    np.testing.assert_array_equal(batch["x"], BAD)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Dataset(None, ONE), "there is no data"),
        (lambda: Dataset(ROWS, ONE, batch_size=0), "the batch size must be at least 1, not 0"),
        (lambda: Dataset(ROWS, ONE, batch_size=-4), "not -4"),
    ],
)
def test_bad_settings_are_said_before_anything_runs(make: Callable[[], Dataset], message: str) -> None:
    with pytest.raises(DataError, match=message):
        make()


def test_arrays_of_anything() -> None:
    np.testing.assert_array_equal(to_numpy(FakeTensor()), ROWS)  # type: ignore[comparison-overlap]
    assert to_numpy([[1, 2], [3, 4]]).shape == (2, 2)
    assert to_numpy(3.5).shape == ()


class Sparse:
    shape, dtype = (4, 3), "float32"


class Samples:
    """A map-style data set, as PyTorch has them."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> np.ndarray:
        return ROWS[index]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (Samples(), r"a Samples, which holds samples one by one: .*DataLoader\(data, batch_size=32\)"),
        ("images/", r"a text, 'images/'.*isobit quantize MODEL --data PATH"),
        (Path("x.npz"), "a text, 'x.npz'"),
        (7, "not int"),
        (Sparse(), "a Sparse, which has no rows to take: pass a dense array"),
    ],
)
def test_what_gives_no_batches(source: object, says: str) -> None:
    for ask in (lambda: Dataset(source, ONE), lambda: example_of(source)):
        with pytest.raises(DataError, match=says):
            ask()
