"""Data as users have it, turned into checked batches: dicts of input name to NumPy array.

`data` may be a list of batches, any re-iterable loader (torch DataLoader, tf.data.Dataset), a factory (a callable that
returns an iterator), a one-shot iterator, or a whole set: one array, or a dict of arrays, cut into batches here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from copy import copy
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isobit.data.arrays import as_texts, is_array, numpy_type, to_numpy
from isobit.data.assign_leaves import assign_leaves, is_text
from isobit.data.loaders import require_batches
from isobit.data.samples import SampleAxes, cut_batches
from isobit.errors import DataError, did_you_mean
from isobit.graph.graph import Graph, TensorInfo

#: Arrays by the names of the inputs; axis 0 holds the samples.
Batch = Mapping[str, NDArray[Any]]

#: Samples that are kept of the first pass, to compare with.
_HEAD = 16

_SAME_KIND = {"f": "f", "i": "iub", "u": "iub", "b": "b", "O": "OSU"}


class Dataset:
    """Checked batches for one model. `notes` collects what was left out, in words, once."""

    def __init__(
        self,
        source: Any,
        graph: Graph,
        *,
        batch_size: int = 32,
        inputs: Callable[[Any], Any] | None = None,
        ignore_non_finite: bool = False,
    ) -> None:
        if source is None:
            raise DataError("there is no data: pass a list of batches, an array or a loader")
        if batch_size < 1:
            raise DataError(f"the batch size must be at least 1, not {batch_size}")
        require_batches(source)
        self.graph = graph
        self.notes: dict[str, None] = {}
        self._source = source
        self._inputs = inputs
        self._ignore_non_finite = ignore_non_finite
        self._samples = SampleAxes.of(graph)
        self._batch_size = self._samples.fixed or batch_size
        self._consumed = False
        self._left_out: frozenset[int] = frozenset()  # batches that belong to somebody else
        self._head: dict[int, Batch] = {}  # of the first pass
        self._head_numbers: tuple[int, ...] = ()
        self.batches_seen = 0  # of the longest pass

    @property
    def is_one_shot(self) -> bool:
        """Whether the data can be gone through once only."""
        return isinstance(self._source, Iterator)

    @property
    def is_at_hand(self) -> bool:
        """Whether each batch is there without reading those before it: arrays, lists of batches, and parts of these."""
        source = self._source
        is_part = getattr(source, "is_at_hand", None) is True
        return is_part or is_array(source) or isinstance(source, Mapping | list | tuple)

    @property
    def _may_be_refilled(self) -> bool:
        """Whether a batch may lie in memory that its maker fills anew for the next, while several are held here."""
        return self._inputs is not None or not self.is_at_hand

    def batches(self, numbers: Collection[int]) -> list[Batch]:
        """The batches of these numbers, in order; no other is checked, and none behind the last is read."""
        wanted = frozenset(numbers)
        found: list[Batch] = []
        if wanted:
            for number, index, raw in self._numbered():
                if number in wanted:
                    found.append(self._checked(raw, index))
                if number >= max(wanted):
                    break
        return found

    def without(self, numbers: Collection[int]) -> Dataset:
        """The same data without the batches of these numbers. Notes are shared."""
        rest, wanted = copy(self), frozenset(numbers)
        kept = (index for index in count() if index not in self._left_out)
        places = zip(range(max(wanted, default=-1) + 1), kept, strict=False)
        gone = {index for number, index in places if number in wanted}
        rest._left_out, rest._head, rest._head_numbers, rest.batches_seen = self._left_out | gone, {}, (), 0
        return rest

    def require_passes(self, count: int, what: str) -> None:
        """Raise DataError before anything runs when `what` needs more passes than the data allows."""
        if self.is_one_shot and (count > 1 or self._consumed):
            raise DataError(
                f"{what} goes through the data {count} times, and an iterator serves once: pass a list or a factory"
            )

    def __len__(self) -> int:
        """Number of batches, 0 where it is not known."""
        return max(0, self._count() - len(self._left_out))

    def _count(self) -> int:
        whole_arrays = self._whole_set()
        if whole_arrays is not None:
            axes = self._samples.cut(whole_arrays)
            return -(-_total(whole_arrays, axes) // self._batch_size) if axes else 1
        try:
            return len(self._source)
        except TypeError:
            count = getattr(self._source, "num_batches", 0)
            return count if isinstance(count, int) else 0

    def __iter__(self) -> Iterator[Batch]:
        for number, index, raw in self._numbered():
            batch = self._checked(raw, index)
            if self._is_kept(number, batch):
                self._head[number] = batch
            self.batches_seen = max(self.batches_seen, number + 1)
            yield batch

    def _numbered(self) -> Iterator[tuple[int, int, Any]]:
        """The number of each batch, its place in the source, and the batch as it comes. Raises DataError for none."""
        empty, number = True, 0
        for index, raw in enumerate(self._raw_batches()):
            empty = False
            if index not in self._left_out:
                yield number, index, raw
                number += 1
        if empty:
            raise DataError("the data set is empty: it gave no batch")

    def begins_with(self, batch: Batch) -> bool:
        """Whether the first pass began with this batch, as every pass does over data that is not shuffled."""
        first_batch = self.first_seen
        return first_batch is None or all(
            np.array_equal(array, batch[name], equal_nan=array.dtype.kind == "f") for name, array in first_batch.items()
        )

    def first(self) -> Batch:
        """The first batch; a one-shot iterator is not asked."""
        if self.is_one_shot:
            raise DataError("example inputs cannot be taken from an iterator without losing them: pass example_inputs")
        return next(iter(self))

    @property
    def first_seen(self) -> Batch | None:
        """The first batch of the first pass; None before it."""
        return self._head.get(0)

    @property
    def head(self) -> Sequence[Batch]:
        """Some batches of the first pass, at most 16, that hold about 16 samples; none before it.

        They are spread over data at hand, and else the first ones.
        """
        return tuple(self._head.values())

    @property
    def head_numbers(self) -> Sequence[int]:
        """The numbers of the batches of `head`."""
        return tuple(self._head)

    def _is_kept(self, number: int, batch: Batch) -> bool:
        if number in self._head:
            return False
        if not self.is_at_hand:
            return number == len(self._head) < _HEAD and self._samples.size(self._head.values()) < _HEAD
        if number == 0:
            self._head_numbers = self.spread(min(_HEAD, -(-_HEAD // max(1, self._samples.size([batch])))))
        return number in self._head_numbers

    def spread(self, amount: int) -> tuple[int, ...]:
        """The numbers of so many batches: spread over data at hand, whose start may be one class or one recording."""
        whole = len(self)
        if amount >= whole or not self.is_at_hand:
            return tuple(range(amount))
        return tuple(number * whole // amount for number in range(amount))

    # --- where batches come from -----------------------------------------------------------------------------------

    def _infos(self) -> dict[str, TensorInfo]:
        return {name: self.graph.tensors[name] for name in self.graph.inputs}

    def _whole_set(self) -> Mapping[str, NDArray[Any]] | None:
        """The source as a dict of whole arrays, if it is one array or a dict of arrays."""
        source = self._source
        if is_array(source):
            names = list(self.graph.inputs)
            if len(names) != 1:
                raise DataError(f"one array for a model with {len(names)} inputs ({', '.join(names)}): pass a dict")
            return {names[0]: to_numpy(source)}
        if isinstance(source, Mapping):
            return self._as_dict(source, "the data")
        return None

    def _raw_batches(self) -> Iterator[Any]:
        whole_arrays = self._whole_set()
        if whole_arrays is not None:
            yield from self._cut(whole_arrays)
            return
        source = self._source
        if callable(source) and not hasattr(source, "__iter__"):
            source = source()
        if not isinstance(source, Iterable):
            kind = type(source).__name__
            raise DataError(f"data must be batches, an array, a dict of arrays or a callable, not {kind}")
        if self.is_one_shot:
            if self._consumed:
                raise DataError("the iterator was used up by an earlier pass: pass a list or a factory")
            self._consumed = True
        yield from source

    def _cut(self, whole: Mapping[str, NDArray[Any]]) -> Iterator[Batch]:
        axes = self._samples.cut(whole)
        if not axes:  # no input follows the batch: the arrays are one batch
            yield dict(whole)
            return
        total, fixed = _total(whole, axes), self._samples.fixed
        if fixed and total % fixed:
            left_over = total % fixed
            note = f"the last {left_over} sample(s) do not fill the model's fixed batch of {fixed}: left out"
            self.notes[note] = None
            total -= left_over
        for name in whole:
            if whole[name].ndim and name in self._samples.by_name and name not in axes:
                self.notes[
                    f"input {name!r} holds no sample of its own for each of the others': every batch has it whole"
                ] = None
        yield from cut_batches(whole, axes, total, self._batch_size)

    # --- checking one batch ----------------------------------------------------------------------------------------

    def _checked(self, raw: Any, index: int) -> dict[str, NDArray[Any]]:
        where = f"batch {index}"
        if self._inputs is not None:
            raw = self._inputs(raw)
        batch = self._as_dict(raw, where)
        for name, info in self._infos().items():
            batch[name] = self._conform(batch[name], name, info, f"input {name!r} in {where}")
        for group in self._samples.counts(batch):
            if len(set(group.values())) > 1:
                raise DataError(f"the inputs in {where} hold different numbers of samples: {group}")
        return batch

    def _as_dict(self, raw: Any, where: str) -> dict[str, NDArray[Any]]:
        names = list(self.graph.inputs)
        if is_array(raw):
            raw = (raw,)
        is_named = hasattr(raw, "keys") or hasattr(raw, "__dataclass_fields__")
        if not is_named and (not isinstance(raw, Sequence) or isinstance(raw, str | bytes)):
            raise DataError(f"{where} is a {type(raw).__name__}; a batch is an array, a tensor, a tuple or a dict")
        skip_texts = not any(info.dtype == "string" for info in self._infos().values())
        if len(names) == 1 and not skip_texts and is_text(raw):  # a list of texts is one array
            raw = (to_numpy(raw),)
        assigned, left, in_order = assign_leaves(raw, names, skip_texts=skip_texts)
        missing = [name for name in names if name not in assigned]
        if missing and not is_named and not left:
            by_name = ", ".join(f"{name!r}: ..." for name in names[:2])
            raise DataError(
                f"{where} holds {len(assigned)} array(s), and the model has {len(names)} input(s): {', '.join(names)}; "
                f"a list or tuple holds batches, so arrays of all samples go by name: {{{by_name}}}"
            )
        if missing:
            given = [*assigned, *left]
            raise DataError(
                f"{where} has no array for input {missing[0]!r}{did_you_mean(missing[0], given)}; "
                f"it holds: {', '.join(given) or 'nothing'}; inputs=lambda batch: {{{missing[0]!r}: ...}} picks others"
            )
        if left and in_order:
            count = len(assigned) + len(left)
            self.notes[f"batches hold {count} elements; the first {len(names)} went to {', '.join(names)}"] = None
        elif left:
            self.notes[f"the data also holds {', '.join(left)}, which the model does not read"] = None
        return {name: to_numpy(assigned[name]) for name in names}

    def _conform(self, array: NDArray[Any], name: str, info: TensorInfo, where: str) -> NDArray[Any]:
        dtype = numpy_type(info.dtype)
        if dtype is None:
            raise DataError(
                f"{where}: the model takes {info.dtype}, for which there are no arrays: export the model with a "
                "float32 input, and cast it inside"
            )
        if array.ndim == 0 and dtype.kind == "f" and array.dtype.kind in "iu":  # a number as one writes it
            array = array.astype(dtype)
        if array.dtype.kind not in _SAME_KIND.get(dtype.kind, dtype.kind):
            hint = "texts" if dtype.kind == "O" else f"{dtype}: convert it (and scale it) first"
            raise DataError(f"{where} is {array.dtype}, and the model takes {hint}")
        if array.dtype.kind == "f" and not self._ignore_non_finite and not np.all(np.isfinite(array)):
            bad = "NaN" if np.any(np.isnan(array)) else "infinity"
            raise DataError(f"{where} holds {bad}: clean the data, or pass ignore_non_finite=True")
        if info.shape is not None:
            shape_fits = array.ndim == len(info.shape) and all(
                not isinstance(want, int) or want == have for want, have in zip(info.shape, array.shape, strict=True)
            )
            if not shape_fits:
                raise DataError(f"{where} has shape {array.shape}, and the model takes {_shape_text(info)}")
        if array.size == 0 and not self._may_be_empty(name, array, info):
            raise DataError(f"{where} is empty, shape {array.shape}")
        if dtype.kind == "O":
            return as_texts(array)
        with np.errstate(over="ignore"):
            converted = np.asarray(array, dtype, order="C")
        if self._may_be_refilled and np.may_share_memory(converted, array):
            converted = converted.copy()
        if dtype.kind in "iu" and not np.array_equal(converted, array):
            raise DataError(f"{where} holds values outside the range of {dtype}, which the model takes")
        if dtype.kind == "f" and not self._ignore_non_finite and not np.all(np.isfinite(converted)):
            raise DataError(f"{where} holds values too large for {dtype}, which the model takes")
        return converted

    def _may_be_empty(self, name: str, array: NDArray[Any], info: TensorInfo) -> bool:
        """Whether a batch may hold an array without values: no cache yet, no boxes; but some samples."""
        axis = self._samples.by_name.get(name)
        if info.shape is None or (axis is not None and array.shape[axis] == 0):
            return False
        return any(not isinstance(size, int) or size == 0 for size in info.shape)


def _total(whole: Mapping[str, NDArray[Any]], axes: Mapping[str, int]) -> int:
    """The number of samples of a whole set."""
    return min(int(whole[name].shape[axis]) for name, axis in axes.items())


def _shape_text(info: TensorInfo) -> str:
    return "(" + ", ".join("?" if n is None else str(n) for n in info.shape or ()) + ")"
