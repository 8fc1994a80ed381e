"""Composite calls that only move, repeat or overwrite values: slices, concatenations, reshapes."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from isobit_torch.decompose.expander import Expander, Rule
from isobit_torch.program.fx_nodes import aten, op_name

_END = (1 << 63) - 1


def _shape(node: fx.Node) -> tuple[Any, ...]:
    return tuple(node.meta["val"].shape)


def _roll(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node | None:
    """For each axis the last part in front of the first."""
    x, shifts, axes = a["self"], list(a["shifts"]), list(a["dims"] or [])
    shape = _shape(x)
    flat = not axes
    if any(isinstance(shift, fx.Node) for shift in shifts):
        return None
    if flat:
        x, axes, total = e.call(aten.reshape.default, x, [-1], part="flat"), [0], x.meta["val"].numel()
        sizes = [total]
    else:
        sizes = [shape[axis] for axis in axes]
    for number, (shift, axis, size) in enumerate(zip(shifts, axes, sizes, strict=True)):
        shift = shift % size if isinstance(size, int) else shift
        if shift == 0:
            continue
        part = f"axis{number}"
        last = e.call(aten.slice.Tensor, x, axis, -shift, _END, part=f"{part}.last")
        first = e.call(aten.slice.Tensor, x, axis, 0, -shift, part=f"{part}.first")
        x = e.call(aten.cat.default, [last, first], axis, part=part)
    if flat:
        x = e.call(aten.reshape.default, x, [e.size(a["self"], axis) for axis in range(len(shape))])
    return x if x is not a["self"] else e.call(aten.alias.default, x)


def _repeat(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node | None:
    """Repeats for more axes than there are, and tile's for fewer."""
    x, repeats = a["self"], list(a.get("repeats") or a.get("dims") or [])
    missing = len(repeats) - len(_shape(x))
    if missing == 0 and op_name(node) == "repeat":
        return None
    if missing > 0:
        x = e.call(aten.reshape.default, x, [*[1] * missing, *(e.size(x, i) for i in range(len(_shape(x))))], part="as")
    return e.call(aten.repeat.default, x, [*[1] * -missing, *repeats])


def _repeat_interleave(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node | None:
    axis, count = a.get("dim"), a.get("repeats")
    if axis is None or not isinstance(count, int):
        return None
    return repeat_interleaved(e, a["self"], axis, count, "")


def repeat_interleaved(e: Expander, x: fx.Node, axis: int, count: int, part: str) -> fx.Node:
    """Each entry along an axis `count` times in a row."""
    rank = len(_shape(x))
    axis %= rank
    stem = f"{part}_" if part else ""
    x = e.call(aten.unsqueeze.default, x, axis + 1, part=f"{stem}unsqueezed", like=x)
    repeats = [count if i == axis + 1 else 1 for i in range(rank + 1)]
    x = e.call(aten.repeat.default, x, repeats, part=f"{stem}repeated", like=x)
    return e.call(aten.flatten.using_ints, x, axis, axis + 1, part=part, like=x)


def _moved(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node:
    """movedim and swapdims as the permutation they are, read off axes of different sizes."""
    axes = torch.empty([axis + 2 for axis in range(len(_shape(a["self"])))], device="meta")
    target: Any = node.target
    return e.call(aten.permute.default, a["self"], [size - 2 for size in target(axes, *list(a.values())[1:]).shape])


def _narrow(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node | None:
    """A slice, where it is known; one up to the end is so from the front and from behind."""
    start, length = a["start"], a["length"]
    if not isinstance(start, int) or not isinstance(length, int):
        return None
    end = start + length
    return e.call(aten.slice.Tensor, a["self"], a["dim"], start, end if start >= 0 or end < 0 else _END)


def _hstack(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node:
    tensors = list(a["tensors"])
    return e.call(aten.cat.default, tensors, 0 if len(_shape(tensors[0])) < 2 else 1)


def _vstack(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node:
    tensors = list(a["tensors"])
    if len(_shape(tensors[0])) < 2:
        tensors = [e.call(aten.reshape.default, t, [1, -1], part="row", like=t) for t in tensors]
    return e.call(aten.cat.default, tensors, 0)


def _tensor_split(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node | None:
    size = _shape(a["self"])[a["dim"]]
    if "sections" not in a or not isinstance(size, int) or not isinstance(a["sections"], int):
        return None
    whole, rest = divmod(size, a["sections"])
    sizes = [whole + (i < rest) for i in range(a["sections"])]
    return e.call(aten.split_with_sizes.default, a["self"], sizes, a["dim"])


def _pixel_unshuffle(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node | None:
    x, factor = a["self"], a["downscale_factor"]
    shape = _shape(x)
    if len(shape) != 4 or not all(isinstance(n, int) for n in shape[1:]):
        return None
    channels, height, width = (int(n) for n in shape[1:])
    batch, small = e.size(x, 0), (height // factor, width // factor)
    x = e.call(aten.reshape.default, x, [batch, channels, small[0], factor, small[1], factor], part="split")
    x = e.call(aten.permute.default, x, [0, 1, 3, 5, 2, 4], part="moved")
    return e.call(aten.reshape.default, x, [batch, channels * factor**2, *small])


def _channel_shuffle(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node | None:
    x, groups = a["self"], a["groups"]
    sizes = [e.size(x, axis) for axis in range(len(_shape(x)))]
    if not isinstance(sizes[1], int):
        return None
    split = e.call(aten.reshape.default, x, [sizes[0], groups, sizes[1] // groups, *sizes[2:]], part="split")
    return e.call(aten.reshape.default, e.call(aten.transpose.int, split, 1, 2, part="moved"), sizes)


def _slice_scatter(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node | None:
    """What is before the written part, the written part, what is behind it."""
    x, source, axis = a["self"], a["src"], a["dim"]
    if str(_shape(x)) == str(_shape(source)):
        return e.call(aten.alias.default, source)
    size, start, end = _shape(x)[axis], a["start"] or 0, _END if a["end"] is None else a["end"]
    if a["step"] != 1 or not all(isinstance(n, int) for n in (size, start, end)):
        return None
    start, end, _ = slice(start, end).indices(int(size))
    return _overwritten(e, x, source, axis, start, end)


def _select_scatter(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node | None:
    size, index = _shape(a["self"])[a["dim"]], a["index"]
    if not isinstance(size, int) or not isinstance(index, int):
        return None
    source = e.call(aten.unsqueeze.default, a["src"], a["dim"], part="unsqueezed", like=a["src"])
    return _overwritten(e, a["self"], source, a["dim"], index % size, index % size + 1)


def _overwritten(e: Expander, x: fx.Node, source: fx.Node, axis: int, start: int, end: int) -> fx.Node:
    parts = [source]
    if start:
        parts.insert(0, e.call(aten.slice.Tensor, x, axis, 0, start, part="before"))
    if end < _shape(x)[axis]:
        parts.append(e.call(aten.slice.Tensor, x, axis, end, _END, part="behind"))
    return e.call(aten.cat.default, parts, axis)


def _copy(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node | None:
    """``copy(x, y)`` is y in the shape of x."""
    source, x = a["src"], a["self"]
    if source.meta["val"].dtype != x.meta["val"].dtype:
        source = e.call(aten.to.dtype, source, x.meta["val"].dtype, part="cast")
    return e.call(aten.expand_as.default, source, x)


def _fill(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node:
    value, x = a["value"], a["self"]
    if not isinstance(value, fx.Node):
        value = e.constant(value, "value", x.meta["val"].dtype)
    elif value.meta["val"].dtype != x.meta["val"].dtype:
        value = e.call(aten.to.dtype, value, x.meta["val"].dtype, part="cast")
    return e.call(aten.expand_as.default, value, x)


def _known(size: Any) -> int:
    """A size as it is with the example, where it is open."""
    return int(size.node.hint) if isinstance(size, torch.SymInt) else int(size)


def _as_strided(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node | None:
    """The same view of a copy that lies in memory in the order of its axes.

    What a view sees depends on how its tensor lies in memory, which quantizers may change, and exporters take for the
    order of the axes. Left as it is where the tensor is a part of a larger one.
    """
    x = a["self"]
    value = x.meta.get("val")
    if not isinstance(value, torch.Tensor) or not statically_known_true(value.storage_offset() == 0):
        return None
    order = sorted(range(value.ndim), key=lambda axis: _known(value.stride(axis)), reverse=True)
    span: Any = 1
    for axis in reversed(order):
        if not statically_known_true(value.shape[axis] == 1) and not statically_known_true(value.stride(axis) == span):
            return None
        span = span * value.shape[axis]
    if order != sorted(order):
        x = e.call(aten.permute.default, x, order, part="ordered", like=x)
    x = e.call(aten.clone.default, x, part="copied", like=x, memory_format=torch.contiguous_format)
    return e.call(aten.as_strided.default, x, a["size"], a["stride"], a["storage_offset"])


MOVES: dict[str, Rule] = {
    "as_strided": _as_strided,
    "roll": _roll,
    "repeat": _repeat,
    "tile": _repeat,
    "repeat_interleave": _repeat_interleave,
    **dict.fromkeys(("movedim", "moveaxis", "swapdims", "swapaxes"), _moved),
    "narrow": _narrow,
    "hstack": _hstack,
    "vstack": _vstack,
    "tensor_split": _tensor_split,
    "pixel_unshuffle": _pixel_unshuffle,
    "channel_shuffle": _channel_shuffle,
    "slice_scatter": _slice_scatter,
    "select_scatter": _select_scatter,
    "copy": _copy,
    "fill": _fill,
}
