"""Layers and operations that move, cut, join and reduce."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from types import EllipsisType
from typing import Any

import keras
import numpy as np

from isobit.errors import ModelError
from isobit_tensorflow.axes import first_axes
from isobit_tensorflow.read.call import Call, Rule
from isobit_tensorflow.read.emitter import Size, Value
from isobit_tensorflow.read.rules.merging import cast_to, concatenate

_END = (1 << 63) - 1


def reshape(call: Call, x: Value, shape: Sequence[Size], name: str = "") -> Value:
    """To a shape of Keras (None or -1 where not known); of 1x1 images without turning them."""
    e, name = call.emitter, name or call.name
    shape = _completed(x.shape, shape)
    if tuple(shape) == x.shape:
        return x
    channels = x.shape[-1]
    if x.last and shape == (x.shape[0], channels) and all(n == 1 for n in x.shape[1:-1]):
        return _reshaped(call, x, shape, name, last=False)
    if x.rank == 2 and len(shape) > 3 and shape[-1] == channels and all(n == 1 for n in shape[1:-1]):
        return _reshaped(call, x, shape, name, last=True)
    return _reshaped(call, e.plain(x), shape, name, last=False)


def _reshaped(call: Call, x: Value, shape: tuple[Size, ...], name: str, *, last: bool) -> Value:
    order = first_axes(len(shape)) if last else range(len(shape))
    target = tuple(-1 if shape[axis] is None else shape[axis] for axis in order)
    return call.emitter.emit("Reshape", name, [x], shape, x.dtype, last, shape=target)


def _completed(source: tuple[Size, ...], shape: Sequence[Size]) -> tuple[Size, ...]:
    """The target with a -1 worked out where the sizes say it; axis 0 is the batch."""
    sizes: list[Size] = [None if n in (-1, None) else int(n) for n in shape]
    unknown = [axis for axis, n in enumerate(sizes) if n is None]
    inner = [n for n in source[1:] if n is not None]
    if unknown and unknown[0] == 0:
        unknown = unknown[1:]
    if len(unknown) == 1 and sizes[0] is None and len(inner) == len(source) - 1:
        product = math.prod(n for n in sizes[1:] if n is not None)
        sizes[unknown[0]] = math.prod(inner) // product if product else None
    return tuple(sizes)


def squeeze_axes(shape: Sequence[Size], axes: Sequence[int]) -> tuple[Size, ...]:
    """A shape without these axes."""
    return tuple(size for axis, size in enumerate(shape) if axis not in axes)


def _expand_dims(call: Call) -> Value:
    x = call.x
    axes = call.setting("axis")
    axes = [axes] if isinstance(axes, int) else list(axes)
    rank = x.rank + len(axes)
    places = {axis % rank for axis in axes}
    sizes = iter(x.shape)
    return reshape(call, x, [1 if axis in places else next(sizes) for axis in range(rank)])


def _squeeze(call: Call) -> Value:
    x, axes = call.x, call.setting("axis")
    if axes is None:
        axes = [axis for axis, n in enumerate(x.shape) if n == 1]
    axes = [axes] if isinstance(axes, int) else list(axes)
    return reshape(call, x, squeeze_axes(x.shape, [axis % x.rank for axis in axes]))


def _transpose(call: Call) -> Value:
    x, axes = call.x, call.setting("axes")
    return call.emitter.transposed(x, tuple(range(x.rank))[::-1] if axes is None else axes, call.name)


def _swap_axes(call: Call) -> Value:
    x = call.x
    order = list(range(x.rank))
    a, b = call.setting("axis1") % x.rank, call.setting("axis2") % x.rank
    order[a], order[b] = order[b], order[a]
    return call.emitter.transposed(x, order, call.name)


def _move_axis(call: Call) -> Value:
    x = call.x
    order = [int(n) for n in np.moveaxis(np.zeros([1] * 0 + list(range(1, x.rank + 1))), call.setting("source"),
                                         call.setting("destination")).shape]  # fmt: skip
    return call.emitter.transposed(x, [n - 1 for n in order], call.name)


def reduce(call: Call, op: str, axes: Any, keepdims: bool) -> Value:
    """Over axes of Keras; over all space of an image that is kept with its channels first as well."""
    e, x = call.emitter, call.x
    listed = range(x.rank) if axes is None else [axes] if isinstance(axes, int) else axes
    reduced = sorted(axis % x.rank for axis in listed)
    spatial = reduced == list(range(1, x.rank - 1))
    shape = (
        tuple(1 if a in reduced else n for a, n in enumerate(x.shape)) if keepdims else squeeze_axes(x.shape, reduced)
    )
    if x.last and (keepdims or spatial):
        places = tuple(sorted(first_axes(x.rank).index(axis) for axis in reduced))
        return e.emit(op, call.name, [x], shape, x.dtype, keepdims, axes=places, keepdims=int(keepdims))
    return e.emit(op, call.name, [e.plain(x)], shape, x.dtype, axes=tuple(reduced), keepdims=int(keepdims))


def _reduction(op: str) -> Callable[[Call], Value]:
    def rule(call: Call) -> Value:
        x = call.x
        if op == "ReduceMean" and not x.is_float:  # of whole numbers, a real one
            call = replace(call, args=(cast_to(call, x, "float32", f"{call.name}/float32"),))
        elif x.dtype == "bool":  # truths are counted
            numbers = cast_to(call, x, "int32", f"{call.name}/int32")
            if op in ("ReduceMax", "ReduceMin"):  # one of the truths
                inner = replace(call, name=f"{call.name}/found", args=(numbers,))
                found = reduce(inner, op, call.setting("axis"), bool(call.setting("keepdims")))
                return cast_to(call, found, "bool", call.name)
            call = replace(call, args=(numbers,))
        return reduce(call, op, call.setting("axis"), bool(call.setting("keepdims")))

    return rule


def _any(call: Call) -> Value:
    """Truth values as the numbers 0 and 1, whose largest tells."""
    e, x = call.emitter, call.emitter.plain(call.x)
    numbers = e.emit("Cast", f"{call.name}/numbers", [x], x.shape, "int32", to="int32")
    inner = replace(call, name=f"{call.name}/largest", args=(numbers,))
    largest = reduce(inner, "ReduceMax", call.setting("axis"), bool(call.setting("keepdims")))
    return e.emit("Cast", call.name, [largest], largest.shape, "bool", to="bool")


def _get_item(call: Call) -> Value | None:
    """Slices, numbers, ``...`` and new axes; of a model that was saved and loaded they are a list, as JSON has it."""
    e, x, key = call.emitter, call.x, call.argument(1)
    items = list(key) if isinstance(key, tuple | list) else [key]
    if not all(item is None or isinstance(item, slice | int | np.integer | EllipsisType) for item in items):
        return None
    used = sum(item is not None and item is not Ellipsis for item in items)
    if Ellipsis not in items:
        items.append(Ellipsis)
    at = items.index(Ellipsis)
    items[at : at + 1] = [slice(None)] * (x.rank - used)
    x = e.plain(x)
    shape = list(x.shape)
    places = list(enumerate(item for item in items if item is not None))
    cut = [(axis, item) for axis, item in places if isinstance(item, slice) and item != slice(None)]
    taken = [(axis, int(item)) for axis, item in places if not isinstance(item, slice)]
    names = _stages(call.name, len(cut) > 0, len(taken), None in items)
    if cut:
        x = _sliced(call, x, cut, next(names))
        shape = list(x.shape)
    for position, (axis, index) in enumerate(taken):
        place = axis - position
        shape.pop(place)
        chosen = e.constant(f"{call.name}/index{position}", index, np.int64)
        x = e.emit("Gather", next(names), [x, chosen], shape, x.dtype, axis=place)
    if None in items:
        sizes = iter(shape)
        wide = [1 if item is None else next(sizes) for item in items if not isinstance(item, int | np.integer)]
        x = reshape(call, x, wide, next(names))
    return x


def _stages(name: str, sliced: bool, taken: int, widened: bool) -> Any:
    """Names of the nodes of one indexing; the last has the operation's own."""
    count = int(sliced) + taken + int(widened)
    return iter([*(f"{name}/{position}" for position in range(count - 1)), name])


def _sliced(call: Call, x: Value, cut: Sequence[tuple[int, slice]], name: str) -> Value:
    shape = list(x.shape)
    starts, ends, steps = [], [], []
    for axis, item in cut:
        step = 1 if item.step is None else int(item.step)
        size = shape[axis]
        shape[axis] = None if size is None else len(range(size)[item])
        first, last = (0, _END) if step > 0 else (-1, -_END - 1)
        starts.append(first if item.start is None else int(item.start))
        ends.append(last if item.stop is None else int(item.stop))
        steps.append(step)
    axes = tuple(axis for axis, _ in cut)
    attributes = {"starts": tuple(starts), "ends": tuple(ends), "axes": axes, "steps": tuple(steps)}
    return call.emitter.emit("Slice", name, [x], shape, x.dtype, **attributes)


def _split(call: Call) -> list[Value]:
    e, x = call.emitter, call.emitter.plain(call.x)
    parts, axis = call.setting("indices_or_sections"), int(call.setting("axis", 0)) % x.rank
    total = x.shape[axis]
    if total is None:
        raise ModelError(f"{call.name!r} splits an axis of unknown size")
    if isinstance(parts, int):
        sizes = [total // parts] * parts
    else:
        edges = [0, *(int(n) for n in parts), total]
        sizes = [b - a for a, b in pairwise(edges)]
    results = [((*x.shape[:axis], size, *x.shape[axis + 1 :]), x.dtype) for size in sizes]
    return e.emit_many("Split", call.name, [x], results, axis=axis, split=tuple(sizes))


def _stack(call: Call) -> Value:
    values = [call.emitter.plain(value) for value in call.args[0]]
    axis = int(call.setting("axis", 0)) % (values[0].rank + 1)
    wide = [reshape(call, v, (*v.shape[:axis], 1, *v.shape[axis:]), f"{call.name}/{i}") for i, v in enumerate(values)]
    return concatenate(call, wide, axis)


def _pad(call: Call) -> Value | None:
    e, x = call.emitter, call.x
    mode, width = call.setting("mode", "constant"), call.setting("pad_width")
    if mode not in ("constant", "reflect"):
        return None
    pairs = [(int(a), int(b)) for a, b in width]
    shape = [None if n is None else n + a + b for n, (a, b) in zip(x.shape, pairs, strict=True)]
    order = first_axes(x.rank) if x.last else range(x.rank)
    turned = [pairs[axis] for axis in order]
    attributes: dict[str, Any] = {"pads": (*(a for a, _ in turned), *(b for _, b in turned)), "mode": mode}
    fill = call.argument(1)
    if fill:
        attributes["value"] = float(fill)
    return e.emit("Pad", call.name, [x], shape, x.dtype, x.last, **attributes)


def _broadcast_to(call: Call) -> Value:
    e, x = call.emitter, call.emitter.plain(call.x)
    shape = [None if n in (-1, None) else int(n) for n in call.setting("shape")]
    target = tuple(-1 if n is None else n for n in shape)
    return e.emit("Expand", call.name, [x], shape, x.dtype, shape=target)


def _tile(call: Call) -> Value | None:
    e, x = call.emitter, call.emitter.plain(call.x)
    repeats = call.setting("repeats")
    repeats = [repeats] if isinstance(repeats, int) else list(repeats)
    if None in repeats:
        raise ModelError(
            f"{call.name!r} repeats a tensor of the model as often as the batch is long, which is not read"
        )
    if len(repeats) > x.rank:
        return None
    repeats = [1] * (x.rank - len(repeats)) + [int(n) for n in repeats]
    shape = [None if n is None else n * r for n, r in zip(x.shape, repeats, strict=True)]
    return e.emit("Tile", call.name, [x], shape, x.dtype, repeats=tuple(repeats))


def _flip(call: Call) -> Value:
    e, x, axes = call.emitter, call.emitter.plain(call.x), call.setting("axis")
    axes = range(x.rank) if axes is None else [axes] if isinstance(axes, int) else axes
    places = tuple(axis % x.rank for axis in axes)
    count = len(places)
    ends = {"starts": (-1,) * count, "ends": (-(1 << 63),) * count, "axes": places, "steps": (-1,) * count}
    return e.emit("Slice", call.name, [x], x.shape, x.dtype, **ends)


def _cumsum(call: Call) -> Value | None:
    e, x, axis = call.emitter, call.emitter.plain(call.x), call.setting("axis")
    if axis is None or call.setting("dtype") not in (None, x.dtype):
        return None
    return e.emit("CumSum", call.name, [x], x.shape, x.dtype, axis=int(axis) % x.rank)


def _take_along_axis(call: Call) -> Value | None:
    """Where both have one shape but for the axis; Keras also broadcasts."""
    e, x, indices, axis = call.emitter, call.argument(0), call.argument(1), call.setting("axis")
    if axis is None or not isinstance(x, Value) or not isinstance(indices, Value) or x.rank != indices.rank:
        return None
    axis = int(axis) % x.rank
    if any(a != b for place, (a, b) in enumerate(zip(x.shape, indices.shape, strict=True)) if place != axis):
        return None
    return e.emit("GatherElements", call.name, [e.plain(x), e.plain(indices)], indices.shape, x.dtype, axis=axis)


def _repeat(call: Call) -> Value | None:
    """Every entry of an axis as often; of an axis of one entry, as often as an open size says."""
    e, x, repeats, axis = call.emitter, call.emitter.plain(call.x), call.setting("repeats"), call.setting("axis")
    if axis is None or not isinstance(repeats, int | np.integer):
        return None
    axis, count = int(axis) % x.rank, int(repeats)
    size = x.shape[axis]
    if size is not None and x.shape.count(None) > 1:  # a reshape leaves one size open
        places = e.constant(f"{call.name}/places", np.repeat(np.arange(size), count), np.int64)
        shape = (*x.shape[:axis], size * count, *x.shape[axis + 1 :])
        return e.emit("Gather", call.name, [x, places], shape, x.dtype, axis=axis)
    wide = reshape(call, x, (*x.shape[: axis + 1], 1, *x.shape[axis + 1 :]), f"{call.name}/wide")
    if wide.shape.count(None) > 1:
        return None
    turns = (1,) * (axis + 1) + (count,) + (1,) * (x.rank - axis - 1)
    tiled_shape = (*x.shape[: axis + 1], count, *x.shape[axis + 1 :])
    tiled = e.emit("Tile", f"{call.name}/tiled", [e.plain(wide)], tiled_shape, x.dtype, repeats=turns)
    return reshape(call, tiled, (*x.shape[:axis], None if size is None else size * count, *x.shape[axis + 1 :]))


def _flatten(call: Call) -> Value:
    x = call.x
    if call.operation.data_format == "channels_first" and x.rank > 2:
        x = call.emitter.transposed(x, (0, *range(2, x.rank), 1), f"{call.name}/channels_last")
    inner = x.shape[1:]
    size = None if None in inner else math.prod(n for n in inner if n is not None)
    return reshape(call, x, (x.shape[0], size))


def _reshape_layer(call: Call) -> Value:
    x = call.x
    return reshape(call, x, (x.shape[0], *(int(n) for n in call.operation.target_shape)))


def _permute(call: Call) -> Value:
    return call.emitter.transposed(call.x, (0, *(int(n) for n in call.operation.dims)), call.name)


def _repeat_vector(call: Call) -> Value:
    e, x, count = call.emitter, call.x, int(call.operation.n)
    wide = reshape(call, x, (x.shape[0], 1, x.shape[1]), f"{call.name}/wide")
    shape = (x.shape[0], count, x.shape[1])
    return e.emit("Tile", call.name, [e.plain(wide)], shape, x.dtype, repeats=(1, count, 1))


LAYERS: Mapping[type, Rule] = {
    keras.layers.Flatten: _flatten,
    keras.layers.Reshape: _reshape_layer,
    keras.layers.Permute: _permute,
    keras.layers.RepeatVector: _repeat_vector,
}

OPERATIONS: Mapping[str, Callable[[Call], Any]] = {
    "Reshape": lambda call: reshape(call, call.x, call.setting("newshape")),
    "ExpandDims": _expand_dims,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Swapaxes": _swap_axes,
    "Moveaxis": _move_axis,
    "GetItem": _get_item,
    "Split": _split,
    "Stack": _stack,
    "Pad": _pad,
    "BroadcastTo": _broadcast_to,
    "Tile": _tile,
    "Repeat": _repeat,
    "Flip": _flip,
    "Cumsum": _cumsum,
    "TakeAlongAxis": _take_along_axis,
    "Mean": _reduction("ReduceMean"),
    "Sum": _reduction("ReduceSum"),
    "Max": _reduction("ReduceMax"),
    "Amax": _reduction("ReduceMax"),
    "Min": _reduction("ReduceMin"),
    "Any": _any,
    "Amin": _reduction("ReduceMin"),
    "Prod": _reduction("ReduceProd"),
}
