"""Data as users have it, turned into checked batches: dicts of input name to NumPy array.

`data` may be a list of batches, any re-iterable loader (torch DataLoader, tf.data.Dataset), a factory (a callable that
returns an iterator), a one-shot iterator, or a whole set: one array, or a dict of arrays, cut into batches here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isobit.assign_leaves import assign_leaves, is_array
from isobit.errors import DataError, ModelError, did_you_mean
from isobit.graph.graph import Graph, TensorInfo

#: Arrays by the names of the inputs; axis 0 holds the samples.
Batch = Mapping[str, NDArray[Any]]

_SAME_KIND = {"f": "f", "i": "iub", "u": "iub", "b": "b"}


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
        _require_end(source)
        self.graph = graph
        self.notes: dict[str, None] = {}
        self._source = source
        self._inputs = inputs
        self._ignore_non_finite = ignore_non_finite
        self._batch_size = self._fixed_batch() or batch_size
        self._consumed = False
        self._first: Batch | None = None  # of the first pass
        self.batches_seen = 0  # of the longest pass

    @property
    def is_one_shot(self) -> bool:
        """Whether the data can be gone through once only."""
        return isinstance(self._source, Iterator)

    def require_passes(self, count: int, what: str) -> None:
        """Raise DataError before anything runs when `what` needs more passes than the data allows."""
        if self.is_one_shot and (count > 1 or self._consumed):
            raise DataError(
                f"{what} goes through the data {count} times, and an iterator serves once: pass a list or a factory"
            )

    def __len__(self) -> int:
        """Number of batches, 0 where it is not known."""
        whole_arrays = self._whole_set()
        if whole_arrays is not None:
            counts = [a.shape[0] for name, a in whole_arrays.items() if a.ndim and self._batch_symbol(name) is not None]
            return -(-counts[0] // self._batch_size) if counts else 1
        try:
            return len(self._source)
        except TypeError:
            count = getattr(self._source, "num_batches", 0)
            return count if isinstance(count, int) else 0

    def __iter__(self) -> Iterator[Batch]:
        empty = True
        for index, raw in enumerate(self._raw_batches()):
            empty = False
            batch = self._checked(raw, index)
            if self._first is None:
                self._first = batch
            self.batches_seen = max(self.batches_seen, index + 1)
            yield batch
        if empty:
            raise DataError("the data set is empty: it gave no batch")

    def begins_with(self, batch: Batch) -> bool:
        """Whether the first pass began with this batch, as every pass does over data that is not shuffled."""
        first_batch = self._first
        return first_batch is None or all(np.array_equal(array, batch[name]) for name, array in first_batch.items())

    def first(self) -> Batch:
        """The first batch; a one-shot iterator is not asked."""
        if self.is_one_shot:
            raise DataError("example inputs cannot be taken from an iterator without losing them: pass example_inputs")
        return next(iter(self))

    @property
    def first_seen(self) -> Batch | None:
        """The first batch of the first pass; None before it."""
        return self._first

    # --- where batches come from -----------------------------------------------------------------------------------

    def _fixed_batch(self) -> int | None:
        """The model's own batch size, where axis 0 of every input is that number."""
        sizes = {info.shape[0] if info.shape else None for info in self._infos().values()}
        size = sizes.pop() if len(sizes) == 1 else None
        return size if isinstance(size, int) else None

    def _batch_symbol(self, name: str) -> str | None:
        """What the model calls axis 0 of an input; None for a fixed size, which is no batch."""
        shape = self.graph.tensors[name].shape
        if shape is None or not shape:
            return None
        return None if isinstance(shape[0], int) and self._fixed_batch() is None else str(shape[0])

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
        if isinstance(source, str | bytes):
            raise DataError("data is a text; to read files, use the command line or numpy.load")
        if self.is_one_shot:
            if self._consumed:
                raise DataError("the iterator was used up by an earlier pass: pass a list or a factory")
            self._consumed = True
        yield from source

    def _cut(self, whole: Mapping[str, NDArray[Any]]) -> Iterator[Batch]:
        cut = {name: array for name, array in whole.items() if self._batch_symbol(name) is not None or array.ndim == 0}
        if not cut:  # no input has the batch on axis 0: the arrays are one batch
            yield dict(whole)
            return
        counts = {name: array.shape[0] if array.ndim else 0 for name, array in cut.items()}
        if len(set(counts.values())) > 1:
            raise DataError(f"the arrays hold different numbers of samples: {counts}")
        total = min(counts.values(), default=0)
        fixed = self._fixed_batch()
        if fixed and total % fixed:
            left_over = total % fixed
            note = f"the last {left_over} sample(s) do not fill the model's fixed batch of {fixed}: left out"
            self.notes[note] = None
            total -= total % fixed
        for start in range(0, total, self._batch_size):
            end = min(start + self._batch_size, total)
            yield {name: array[start:end] if name in cut else array for name, array in whole.items()}

    # --- checking one batch ----------------------------------------------------------------------------------------

    def _checked(self, raw: Any, index: int) -> dict[str, NDArray[Any]]:
        where = f"batch {index}"
        if self._inputs is not None:
            raw = self._inputs(raw)
        batch = self._as_dict(raw, where)
        for name, info in self._infos().items():
            batch[name] = self._conform(batch[name], info, f"input {name!r} in {where}")
        sizes: dict[str, dict[str, int]] = {}
        for name, array in batch.items():
            symbol = self._batch_symbol(name)
            if symbol is not None and array.ndim:
                sizes.setdefault(symbol, {})[name] = array.shape[0]
        for group in sizes.values():
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
        assigned, left, in_order = assign_leaves(raw, names, skip_texts=skip_texts)
        missing = [name for name in names if name not in assigned]
        if missing and not is_named and not left:
            known = ", ".join(names)
            raise DataError(f"{where} holds {len(assigned)} array(s), and the model has {len(names)} inputs: {known}")
        if missing:
            given = [*assigned, *left]
            raise DataError(
                f"{where} has no array for input {missing[0]!r}{did_you_mean(missing[0], given)}; "
                f"it holds: {', '.join(given) or 'nothing'}"
            )
        if left and in_order:
            count = len(assigned) + len(left)
            self.notes[f"batches hold {count} elements; the first {len(names)} went to {', '.join(names)}"] = None
        elif left:
            self.notes[f"the data also holds {', '.join(left)}, which the model does not read"] = None
        return {name: to_numpy(assigned[name]) for name in names}

    def _conform(self, array: NDArray[Any], info: TensorInfo, where: str) -> NDArray[Any]:
        dtype = np.dtype(info.dtype) if info.dtype != "bfloat16" else np.dtype(np.float32)
        if array.dtype.kind not in _SAME_KIND.get(dtype.kind, dtype.kind):
            raise DataError(f"{where} is {array.dtype}, and the model takes {dtype}: convert it (and scale it) first")
        if array.dtype.kind == "f" and not self._ignore_non_finite and not np.all(np.isfinite(array)):
            bad = "NaN" if np.any(np.isnan(array)) else "infinity"
            raise DataError(f"{where} holds {bad}: clean the data, or ask to ignore it")
        if info.shape is not None:
            shape_fits = array.ndim == len(info.shape) and all(
                not isinstance(want, int) or want == have for want, have in zip(info.shape, array.shape, strict=True)
            )
            if not shape_fits:
                raise DataError(f"{where} has shape {array.shape}, and the model takes {_shape_text(info)}")
        if array.size == 0:
            raise DataError(f"{where} is empty, shape {array.shape}")
        with np.errstate(over="ignore"):
            converted = np.asarray(array, dtype, order="C")
        if dtype.kind in "iu" and not np.array_equal(converted, array):
            raise DataError(f"{where} holds values outside the range of {dtype}, which the model takes")
        if dtype.kind == "f" and not self._ignore_non_finite and not np.all(np.isfinite(converted)):
            raise DataError(f"{where} holds values too large for {dtype}, which the model takes")
        return converted


def _require_end(source: Any) -> None:
    """Raise DataError for a loader that says of itself that it never ends."""
    if is_array(source) or isinstance(source, Mapping):
        return
    try:
        endless = getattr(source, "num_batches", 0) is None  # as a keras.utils.PyDataset says it
        if hasattr(source, "__len__"):
            len(source)
    except NotImplementedError:
        endless = True
    except TypeError as error:  # as a tf.data.Dataset says it
        endless = "infinite" in str(error)
    if endless:
        raise DataError(
            "the data has no end: pass a part of it, for example itertools.islice(data, 64) or data.take(64)"
        )


def example_of(source: Any, inputs: Callable[[Any], Any] | None = None, samples: int = 2) -> Any:
    """One batch of `source` as `inputs` picks it, for frameworks that need one; None where that would lose it."""
    raw = _raw_example(source, samples)
    return raw if raw is None or inputs is None else inputs(raw)


def _raw_example(source: Any, samples: int) -> Any:
    if isinstance(source, Iterator) or source is None:
        return None
    if is_array(source):
        return source[:samples]
    if isinstance(source, Mapping):
        return {name: value[:samples] for name, value in source.items()}
    if callable(source) and not hasattr(source, "__iter__"):
        source = source()
    return next(iter(source), None) if isinstance(source, Iterable) else None


def example_by_name(example: Any, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """The arrays of an example batch by input: its own keys, or `names` in order. Raises ModelError."""
    if example is None:
        raise ModelError("the model does not say its shapes: pass example_inputs, one batch of the model's inputs")
    if isinstance(example, Mapping):
        return {str(name): to_numpy(array) for name, array in example.items()}
    arrays = example if isinstance(example, list | tuple) else [example]
    if len(names) < len(arrays):
        raise ModelError(f"the model takes {len(names)} inputs ({', '.join(names)}); the example has {len(arrays)}")
    return {name: to_numpy(array) for name, array in zip(names, arrays, strict=False)}


def to_numpy(value: Any) -> NDArray[Any]:
    """A NumPy array of an array, a tensor of any framework (also on a device), or a nested list of numbers."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":  # which NumPy does not have
            value = value.float()
    try:
        array = np.asarray(value.numpy() if hasattr(value, "numpy") else value)
    except ValueError as error:  # rows of different lengths
        raise DataError(f"cannot make an array of a {type(value).__name__}: {error}") from error
    if array.dtype == object:
        raise DataError(f"cannot make an array of a {type(value).__name__}: its parts have different shapes or types")
    return array


def _shape_text(info: TensorInfo) -> str:
    return "(" + ", ".join("?" if n is None else str(n) for n in info.shape or ()) + ")"
