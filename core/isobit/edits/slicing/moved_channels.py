"""Ops that move channels: to another axis, behind or in front of others, into one axis with what lies behind them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import gcd, prod

import numpy as np

from isobit.edits.slicing.channel_relations import Fixed, Relation, Sizes, Slot, Tie, named
from isobit.edits.slicing.elementwise_channels import all_fixed
from isobit.graph.graph import Dimension, Node, Shape


def transpose(sizes: Sizes, node: Node) -> Iterator[Relation]:
    """Axes in another order."""
    source, result = node.inputs[0] or "", node.outputs[0]
    if "perm" not in node.attributes:
        yield from all_fixed(sizes, node)
        return
    for place, axis in enumerate(node.attributes["perm"]):
        yield Tie(Slot(source, axis), Slot(result, place))


def concat(sizes: Sizes, node: Node) -> Iterator[Relation]:
    """Parts one behind the other along an axis; the other axes are of all of them."""
    result, axis = node.outputs[0], int(node.attributes["axis"])
    yield from _parts(sizes, [name or "" for name in node.inputs], result, axis)


def split(sizes: Sizes, node: Node) -> Iterator[Relation]:
    """The other way round."""
    source = node.inputs[0] or ""
    if len(node.attributes.get("split", ())) != len(node.outputs):  # parts that nothing reads may be left out
        yield from all_fixed(sizes, node)
        return
    axis = int(node.attributes["axis"])
    yield from _parts(sizes, node.outputs, source, axis)


def _parts(sizes: Sizes, parts: Sequence[str], whole: str, axis: int) -> Iterator[Relation]:
    start: int | None = 0
    for part in parts:
        for other in range(len(sizes.shape(whole) or ())):
            if other != axis:
                yield Tie(Slot(part, other), Slot(whole, other))
        size = sizes.size(Slot(part, axis))
        if size is None or start is None:
            start = None  # what follows begins at an unknown place
            for name in (part, whole):
                yield Fixed(Slot(name, axis), f"the size of {part!r} is unknown")
            continue
        yield Tie(Slot(part, axis), Slot(whole, axis), np.arange(size), np.arange(start, start + size))
        start += size


def slice_(sizes: Sizes, node: Node) -> Iterator[Relation]:
    """A range of an axis; what is left over is read by nobody here."""
    source, result = node.inputs[0] or "", node.outputs[0]
    if not {"starts", "ends", "axes", "steps"} <= node.attributes.keys():
        yield from all_fixed(sizes, node)
        return
    rank = len(sizes.shape(source) or ())
    cut = {axis % rank: place for place, axis in enumerate(node.attributes["axes"])} if rank else {}
    for axis in range(rank):
        size = sizes.size(Slot(source, axis))
        if axis not in cut:
            yield Tie(Slot(source, axis), Slot(result, axis))
        elif size is not None:
            kept = taken(node, cut[axis], size)
            if len(kept) == sizes.size(Slot(result, axis)):
                yield Tie(Slot(source, axis), Slot(result, axis), kept, np.arange(len(kept)))
            if node.attributes["steps"][cut[axis]] != 1:
                yield Fixed(Slot(source, axis), f"{named(node)} takes every so many of them")


def taken(node: Node, place: int, size: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The indices of an axis of `size` that the cut at `place` of a Slice keeps."""
    start, end, step = (int(node.attributes[key][place]) for key in ("starts", "ends", "steps"))
    chosen = slice(start, None if step < 0 and end < -size else end, step)
    return np.arange(size)[chosen]


def pad(sizes: Sizes, node: Node) -> Iterator[Relation]:
    """Axes that nothing is put around."""
    source, result = node.inputs[0] or "", node.outputs[0]
    rank, pads = len(sizes.shape(source) or ()), node.attributes.get("pads")
    if pads is None or "axes" in node.attributes or len(pads) != 2 * rank:
        yield from all_fixed(sizes, node)
        return
    for axis in range(rank):
        if pads[axis] == pads[axis + rank] == 0:
            yield Tie(Slot(source, axis), Slot(result, axis))
        else:
            for name in (source, result):
                yield Fixed(Slot(name, axis), f"{named(node)} puts values around it")


def reshape(sizes: Sizes, node: Node) -> Iterator[Relation]:
    """Axes joined or split: one of such a run, the first, goes together in blocks, and the others stay whole.

    Of (heads * width) split in two, the heads can go; of (channels, height, width) made one, the channels. Where the
    first axis is taken apart, or is put behind the next, the next one can go: of (groups, channels) that are shuffled
    the same channel of every group, of (3, heads, width) the same head of queries, keys and values.
    """
    source, result = node.inputs[0] or "", node.outputs[0]
    before, after = sizes.shape(source), sizes.shape(result)
    if before is None or after is None:
        yield from all_fixed(sizes, node)
        return
    open_axes = [set(range(len(before))), set(range(len(after)))]
    for first, second in _runs(before, after):
        open_axes[0].difference_update(first)
        open_axes[1].difference_update(second)
        yield from _run(sizes, node, (source, before, first), (result, after, second))
    for name, shape, axes in zip((source, result), (before, after), open_axes, strict=True):
        for axis in (axis for axis in axes if shape[axis] != 1):
            yield Fixed(Slot(name, axis), f"{named(node)} blocks the removal of channels: an axis beside it is open")


def _run(
    sizes: Sizes, node: Node, before: tuple[str, Shape, range], after: tuple[str, Shape, range]
) -> Iterator[Relation]:
    """Blocks of equal extent on both sides hold the same values."""
    total = prod(int(str(before[1][axis])) for axis in before[2])
    leading = []
    both = [[axis for axis in axes if shape[axis] != 1] for _, shape, axes in (before, after)]
    if len(both[0]) == 1 and len(both[1]) > 1 and _leaves_first(sizes, after[0], *both[1][:2]):
        (whole,), (outer, middle, *others) = both
        inner = prod(int(str(after[1][axis])) for axis in others)
        values = np.arange(total)
        yield Tie(Slot(before[0], whole), Slot(after[0], middle), values, values // inner % int(str(after[1][middle])))
        for axis in (outer, *others):
            yield Fixed(Slot(after[0], axis), f"{named(node)} splits it off: no channel of it can go by itself")
        return
    for (name, shape, _), long in zip((before, after), both, strict=True):
        if not long:
            return
        leading.append((Slot(name, long[0]), total // int(str(shape[long[0]]))))
        for axis in long[1:]:
            yield Fixed(Slot(name, axis), f"{named(node)} joins or splits it: no channel of it can go by itself")
    (first, first_block), (second, second_block) = leading
    values = np.arange(0, total, gcd(first_block, second_block))
    yield Tie(first, second, values // first_block, values // second_block)


def _leaves_first(sizes: Sizes, tensor: str, first: int, second: int) -> bool:
    """Whether what reads a tensor takes its axis `first` apart, or joins it behind `second`, axes moved in between."""
    graph, rank = sizes.graph, len(sizes.shape(tensor) or ())
    use = graph.sole_reader(tensor)
    if use is not None and use.node.op == "Transpose" and "perm" in use.node.attributes:
        order = [int(axis) for axis in use.node.attributes["perm"]]
        tensor, first, second = use.node.outputs[0], order.index(first), order.index(second)
    uses = graph.uses(tensor)
    use = graph.sole_reader(tensor)
    if use is not None and use.node.op == "Reshape":
        runs = _runs(sizes.shape(tensor) or (), sizes.shape(use.node.outputs[0]) or ())
        return second + 1 == first and any(second in run and first in run for run, _ in runs)
    return bool(uses) and all(first in _taken_apart(use.node, rank) for use in uses)


def _taken_apart(node: Node, rank: int) -> list[int]:
    """The axes of its input along which a node takes parts."""
    if node.op in ("Split", "Gather"):
        return [int(node.attributes.get("axis", 0)) % rank]
    return [int(axis) % rank for axis in node.attributes.get("axes", ())] if node.op == "Slice" else []


def _runs(before: Shape, after: Shape) -> Iterator[tuple[range, range]]:
    """Runs of axes that hold equally many values, from the back as far as sizes are known, then from the front."""
    back = list(_matched(before[::-1], after[::-1]))
    ends = (len(before) - sum(len(a) for a, _ in back), len(after) - sum(len(b) for _, b in back))
    for first, second in back:
        yield (
            range(len(before) - first.stop, len(before) - first.start),
            range(len(after) - second.stop, len(after) - second.start),
        )
    yield from _matched(before[: ends[0]], after[: ends[1]])


def _matched(before: Sequence[Dimension], after: Sequence[Dimension]) -> Iterator[tuple[range, range]]:
    i = j = 0
    while i < len(before) and j < len(after):
        start, first, second = (i, j), before[i], after[j]
        i, j = i + 1, j + 1
        while isinstance(first, int) and isinstance(second, int) and first != second:
            if first < second and i < len(before) and isinstance(size := before[i], int):
                first, i = first * size, i + 1
            elif second < first and j < len(after) and isinstance(size := after[j], int):
                second, j = second * size, j + 1
            else:
                return
        if not isinstance(first, int) or not isinstance(second, int):
            return
        yield range(start[0], i), range(start[1], j)
