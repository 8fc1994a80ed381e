"""Layouts: how a native weight array becomes the canonical one, as data, and back.

A layout is a tuple of steps applied in order to the native array. Each step is exact and reversible, so a canonical
weight can be written back, and scales can be carried to the native layout, without a backend knowing why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Permute:
    """Transpose of the axes."""

    axes: tuple[int, ...]


@dataclass(frozen=True)
class View:
    """Reshape to `shape`, from the array's shape `before`."""

    shape: tuple[int, ...]
    before: tuple[int, ...]


@dataclass(frozen=True)
class Take:
    """Entry `index` of the leading axis (one direction of a bidirectional LSTM)."""

    index: int


@dataclass(frozen=True)
class Blocks:
    """The leading axis in equal blocks (an LSTM's gates), reordered: block i of the result is block ``order[i]``."""

    order: tuple[int, ...]


LayoutStep = Permute | View | Take | Blocks
Layout = tuple[LayoutStep, ...]

TRANSPOSED: Layout = (Permute((1, 0)),)


def compose(first: Layout, second: Layout) -> Layout:
    """`first`, then `second`; neighbouring steps of one kind are merged, and those that change nothing dropped."""
    steps: list[LayoutStep] = []
    for step in (*first, *second):
        last = steps[-1] if steps else None
        if isinstance(step, Permute) and isinstance(last, Permute):
            steps[-1] = Permute(tuple(last.axes[axis] for axis in step.axes))
        elif isinstance(step, View) and isinstance(last, View):
            steps[-1] = View(step.shape, last.before)
        elif isinstance(step, Blocks) and isinstance(last, Blocks) and len(step.order) == len(last.order):
            steps[-1] = Blocks(tuple(last.order[block] for block in step.order))
        else:
            steps.append(step)
        if _is_nothing(steps[-1]):
            steps.pop()
    return tuple(steps)


def _is_nothing(step: LayoutStep) -> bool:
    if isinstance(step, Permute):
        return step.axes == tuple(range(len(step.axes)))
    if isinstance(step, View):
        return step.shape == step.before
    return isinstance(step, Blocks) and step.order == tuple(range(len(step.order)))


def inverse(layout: Sequence[LayoutStep]) -> Layout:
    """The steps that lead back. Raises ValueError for one that takes a part of an array."""
    steps: list[LayoutStep] = []
    for step in reversed(layout):
        if isinstance(step, Permute):
            steps.append(Permute(tuple(np.argsort(step.axes).tolist())))
        elif isinstance(step, View):
            steps.append(View(step.before, step.shape))
        elif isinstance(step, Blocks):
            steps.append(Blocks(tuple(np.argsort(step.order).tolist())))
        else:
            raise ValueError("a part of an array does not lead back to the whole")
    return tuple(steps)


def to_canonical(native: NDArray[Any], layout: Sequence[LayoutStep]) -> NDArray[Any]:
    """The canonical array of a native one."""
    array = native
    for step in layout:
        if isinstance(step, Permute):
            array = array.transpose(step.axes)
        elif isinstance(step, View):
            array = array.reshape(step.shape)
        elif isinstance(step, Blocks):
            array = _reordered(array, step.order)
        else:
            array = array[step.index]
    return array


def _reordered(array: NDArray[Any], order: Sequence[int]) -> NDArray[Any]:
    blocks = array.reshape(len(order), array.shape[0] // len(order), *array.shape[1:])
    return blocks[list(order)].reshape(array.shape)


def to_native(
    canonical: NDArray[Any], layout: Sequence[LayoutStep], native: NDArray[Any] | None = None
) -> NDArray[Any]:
    """The native array of a canonical one; `native` is the array to write into where the layout takes a part of it."""
    array = canonical
    for position in range(len(layout) - 1, -1, -1):
        step = layout[position]
        if isinstance(step, Permute):
            array = array.transpose(np.argsort(step.axes))
        elif isinstance(step, View):
            array = array.reshape(_resized(step, array))
        elif isinstance(step, Blocks):
            array = _reordered(array, np.argsort(step.order).tolist())
        else:
            if native is None:
                raise ValueError("a part of an array is written back into the whole array")
            whole = np.array(to_canonical(native, layout[:position]))
            whole[step.index] = array
            array = whole
    return np.asarray(array, order="C")  # ascontiguousarray would make a scalar one-dimensional


def resized(layout: Sequence[LayoutStep], shape: tuple[int, ...]) -> Layout:
    """The layout of a constant whose canonical shape an edit has changed to `shape`, its views adapted.

    Raises ValueError where a view does not say how the native array changes.
    """
    array = np.broadcast_to(np.int8(0), shape)
    steps: list[LayoutStep] = []
    for step in reversed(layout):
        if isinstance(step, View):
            before = array.reshape(_resized(step, array))
            steps.append(View(array.shape, before.shape))
            array = before
        elif isinstance(step, Permute):
            steps.append(step)
            array = array.transpose(np.argsort(step.axes))
        elif isinstance(step, Blocks):
            steps.append(step)
        else:
            raise ValueError("a part of an array keeps its shape")
    return tuple(reversed(steps))


def _resized(step: View, array: NDArray[Any]) -> tuple[int, ...]:
    """The shape before the view, adapted when an edit has changed the array's size along one axis."""
    if array.shape == step.shape:
        return step.before
    if step.before == () or len(step.before) == 1:
        return (array.size,)
    axes = [axis for axis, size in enumerate(step.shape) if size != 1]
    if [step.shape[axis] for axis in axes] == [size for size in step.before if size != 1]:
        sizes = iter([array.shape[axis] for axis in axes])  # the view moves axes of size 1 alone
        return tuple(size if size == 1 else next(sizes) for size in step.before)
    unchanged = [n for n in step.before if n in array.shape]
    shape = tuple(n if n in unchanged else -1 for n in step.before)
    return shape if shape.count(-1) <= 1 else step.before


def output_shape(shape: tuple[int, ...], layout: Sequence[LayoutStep]) -> tuple[int, ...]:
    """The canonical shape of a native `shape`."""
    return to_canonical(np.broadcast_to(np.int8(0), shape), layout).shape


def conv_transpose_layout(shape: tuple[int, ...], group: int) -> Layout:
    """ONNX's (in, out/groups, *kernel) to (out, in/groups, *kernel), groups unrolled."""
    channels, out, *kernel = shape
    kernel_axes = range(3, 3 + len(kernel))
    if group == 1:
        return (Permute((1, 0, *range(2, len(shape)))),)
    split = (group, channels // group, out, *kernel)
    joined = (group * out, channels // group, *kernel)
    return (
        View(split, shape),
        Permute((0, 2, 1, *kernel_axes)),
        View(joined, (group, out, channels // group, *kernel)),
    )
