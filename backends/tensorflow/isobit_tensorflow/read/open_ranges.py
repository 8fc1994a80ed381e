"""Counting to a size that a model leaves open, while a layer that does so is opened: ``ops.arange(ops.shape(x)[1])``.

With a number in the place of the open size (see `open_sizes`), a range, the first rows of a table and a tensor that is
repeated would be constants of that length. Here they are operations on the tensor whose size it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import keras
import tensorflow as tf
from keras import ops
from keras.src import ops as inner_ops
from keras.src.backend.common.symbolic_scope import in_symbolic_scope
from keras.src.ops import numpy as numpy_ops

from isobit_tensorflow.read.in_this_thread import in_this_thread

#: Where code that is called finds the functions: a user's, and that of Keras' own layers.
_MODULES = (ops, inner_ops, numpy_ops)

_count = tf.range  # as it is, while `open_ranges` is in its place


class Places(keras.Operation):  # type: ignore[misc]
    """0, 1, ... for each entry along one axis of a tensor, (size,) int32."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def call(self, x: Any) -> Any:
        """As TensorFlow counts."""
        return _count(tf.shape(x)[self.axis])

    def compute_output_spec(self, x: Any) -> Any:
        """As long as the axis."""
        return keras.KerasTensor((x.shape[self.axis],), "int32")


class OpenRanges:
    """The tensor and the axis that each number stands for which is in the place of an open size.

    Without such numbers an open size is None: `is_doubtful` says that a range or a cut had one, or may have, which
    Python and Keras take for no bound at all; `is_cut`, that a tensor of the model was cut without a bound.
    """

    def __init__(self, sources: Mapping[int, tuple[Any, int]]) -> None:
        self._sources = sources
        self._places: dict[int, Any] = {}
        self.is_doubtful = False
        self.is_cut = False

    def places(self, size: Any) -> Any:
        """0, 1, ... to an open size; as a tensor while Keras itself asks for shapes."""
        if in_symbolic_scope():
            return _count(size)
        if size not in self._places:
            tensor, axis = self._sources[size]
            self._places[size] = Places(axis)(tensor)
        return self._places[size]

    def is_open(self, size: Any) -> bool:
        """Whether a number stands for an open size."""
        return isinstance(size, int) and size in self._sources

    def arange(self, usual: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """`keras.ops.arange`, as it is called."""
        given = {**dict(zip(("start", "stop", "step", "dtype"), args, strict=False)), **kwargs}
        start, end, step = given.get("start", 0), given.get("stop"), given.get("step")
        self.is_doubtful |= end is None and ("stop" in given or step is not None)
        if end is None:
            start, end = 0, start
        counts = isinstance(start, int) and start == 0 and (step is None or (isinstance(step, int) and step == 1))
        if not counts or not self.is_open(end):
            return usual(*args, **kwargs)
        return ops.cast(self.places(end), given.get("dtype") or "int32")

    def range(self, usual: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """`tf.range`, which names its arguments otherwise."""
        names = ("limit",) if len(args) == 1 and "limit" not in kwargs else ("start", "limit", "delta", "dtype")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        start, end, step = given.get("start", 0), given.get("limit"), given.get("delta", 1)
        self.is_doubtful |= end is None
        counts = all(isinstance(n, int) for n in (start, step)) and (start, step) == (0, 1)
        if not counts or not self.is_open(end):
            return usual(*args, **kwargs)
        dtype = given.get("dtype")
        return ops.cast(self.places(end), "int32" if dtype is None else tf.as_dtype(dtype).name)

    def slice(self, usual: Callable[..., Any], inputs: Any, start_indices: Any, shape: Any) -> Any:
        """`keras.ops.slice`."""
        sizes = tuple(shape) if isinstance(shape, list | tuple) else ()
        starts = tuple(start_indices) if isinstance(start_indices, list | tuple) else ()
        axes = [axis for axis, size in enumerate(sizes) if self.is_open(size)]
        from_0 = len(starts) == len(sizes) and all(isinstance(n, int) and n == 0 for n in starts)
        if isinstance(inputs, keras.KerasTensor) or len(axes) != 1 or not from_0:
            return usual(inputs, start_indices, shape)
        whole = tuple(inputs.shape)
        if any(size not in (whole[axis], -1) for axis, size in enumerate(sizes) if axis != axes[0]):
            return usual(inputs, start_indices, shape)
        return self._first_rows(inputs, axes[0], sizes[axes[0]])

    def item(self, usual: Callable[..., Any], table: Any, key: Any) -> Any:
        """``table[:n]`` of a variable or a constant."""
        items = key if isinstance(key, tuple) else (key,)
        if not in_symbolic_scope():
            self.is_doubtful |= any(isinstance(item, slice) and item.stop is None for item in items)
        cuts = [axis for axis, item in enumerate(items) if self._is_cut(item)]
        others = [item for axis, item in enumerate(items) if axis not in cuts]
        if len(cuts) != 1 or any(item is not Ellipsis and item is not None and item != slice(None) for item in others):
            return usual(table, key)
        (at,) = cuts
        if Ellipsis in items[:at]:
            return usual(table, key)
        axis = sum(item is not None for item in items[:at])
        rows = self._first_rows(table, axis, items[at].stop)
        return rows[tuple(slice(None) if place == at else item for place, item in enumerate(items))]

    def cut(self, usual: Callable[..., Any], tensor: Any, key: Any) -> Any:
        """``x[:, :n]`` of a tensor of the model."""
        items = key if isinstance(key, tuple) else (key,)
        self.is_cut |= any(isinstance(item, slice) and item.stop is None for item in items)
        return usual(tensor, key)

    def _is_cut(self, item: Any) -> bool:
        if not isinstance(item, slice):
            return False
        return self.is_open(item.stop) and item.start in (None, 0) and item.step in (None, 1)

    def _first_rows(self, table: Any, axis: int, size: int) -> Any:
        """So many entries of an axis, looked up: TensorFlow would cut the table to that number."""
        shape = tuple(table.shape)
        places = self.places(size)
        if len(shape) > 2 and axis == len(shape) - 2 and all(n == 1 for n in shape[:axis]):
            rows = ops.take(ops.reshape(table, shape[axis:]), places, axis=0)
            return ops.reshape(rows, (*shape[:axis], size, *shape[axis + 1 :]))
        return ops.take(ops.convert_to_tensor(table), places, axis=axis)

    def broadcast_to(self, usual: Callable[..., Any], x: Any, shape: Any) -> Any:
        """`keras.ops.broadcast_to`: a choice between a tensor and itself, by what is as long as the open sizes."""
        sizes = tuple(shape) if isinstance(shape, list | tuple) else ()
        axes = [axis for axis, size in enumerate(sizes) if self.is_open(size)]
        if not isinstance(x, keras.KerasTensor) or not axes:
            return usual(x, shape)
        own = (1,) * (len(sizes) - len(x.shape)) + tuple(x.shape)
        wide = [axis for axis in axes if own[axis] == 1]
        x = ops.reshape(x, own) if len(own) != len(x.shape) else x
        for axis in wide:
            places = ops.reshape(self.places(sizes[axis]), [sizes[axis] if a == axis else 1 for a in range(len(own))])
            x = ops.where(ops.equal(places, places), x, x)
        target = tuple(x.shape)
        return x if target == sizes else usual(x, sizes)


@contextmanager
def open_ranges(ranges: OpenRanges) -> Iterator[None]:
    """What counts to an open size is an operation on the tensor that has it."""
    with ExitStack() as undo:
        for module in _MODULES:
            for name, function in (
                ("arange", ranges.arange), ("slice", ranges.slice), ("broadcast_to", ranges.broadcast_to),
            ):  # fmt: skip
                if hasattr(module, name):
                    usual = getattr(module, name)
                    _put(undo, module, name, in_this_thread(partial(function, usual), usual))
        _put(undo, tf, "range", in_this_thread(partial(ranges.range, tf.range), tf.range))
        for kind in (keras.Variable, tf.Tensor):
            _put(undo, kind, "__getitem__", _method(ranges.item, kind.__getitem__))
        _put(undo, keras.KerasTensor, "__getitem__", _method(ranges.cut, keras.KerasTensor.__getitem__))
        yield


def _put(undo: ExitStack, owner: Any, name: str, value: Any) -> None:
    own = vars(owner).get(name)
    setattr(owner, name, value)
    undo.callback(partial(setattr, owner, name, own) if own is not None else partial(delattr, owner, name))


def _method(function: Callable[..., Any], usual: Callable[..., Any]) -> Callable[..., Any]:
    return in_this_thread(lambda self, key: function(usual, self, key), usual)
