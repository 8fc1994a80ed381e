"""Ops that treat every channel by itself, and those of them that look across one axis."""

from __future__ import annotations

from collections.abc import Iterator

from isobit.edits.slicing.channel_relations import Fixed, Relation, Sizes, Slot, Tie, named
from isobit.graph.graph import Node

#: Input and output have the same channels at the front and other axes behind, which are windows over positions.
CHANNEL_CONSTANTS = frozenset({"BatchNormalization", "InstanceNormalization", "PRelu"})


def broadcast(sizes: Sizes, node: Node) -> Iterator[Relation]:
    """Axes counted from the end go together; one of size 1 is spread over the others."""
    result = node.outputs[0]
    rank = len(sizes.shape(result) or ())
    for name in dict.fromkeys(node.inputs):
        shape = sizes.shape(name) or ()
        for axis in range(-len(shape), 0):
            if name is not None and rank + axis >= 0:
                yield from _same(sizes, Slot(name, len(shape) + axis), Slot(result, rank + axis))


def unary(sizes: Sizes, node: Node) -> Iterator[Relation]:
    """Every axis stays what it is; constants beside the tensor have one value a channel."""
    yield from _same_axes(sizes, node.inputs[0], node.outputs[0])
    for constant in node.inputs[1:]:
        if constant is not None and node.op in CHANNEL_CONSTANTS:
            yield from _same(sizes, Slot(constant, 0), Slot(node.outputs[0], 1))
    if node.op == "InstanceNormalization":
        yield from _fixed_axes(sizes, node, range(2, len(sizes.shape(node.outputs[0]) or ())))


def along_axis(sizes: Sizes, node: Node) -> Iterator[Relation]:
    """An op that looks along one axis, such as Softmax: that axis stays whole."""
    yield from _same_axes(sizes, node.inputs[0], node.outputs[0])
    rank = len(sizes.shape(node.outputs[0]) or ())
    axes = node.attributes.get("axes", (node.attributes.get("axis", -1),))
    yield from _fixed_axes(sizes, node, [axis % rank for axis in axes] if rank else [])


def normalization(sizes: Sizes, node: Node) -> Iterator[Relation]:
    """A norm over the last axes: its mean and its variance are taken over all channels."""
    yield from _same_axes(sizes, node.inputs[0], node.outputs[0])
    rank = len(sizes.shape(node.outputs[0]) or ())
    axes = node.attributes.get("axes", range(int(node.attributes.get("axis", -1)), 0))
    yield from _fixed_axes(sizes, node, [axis % rank for axis in axes] if rank else [])
    yield from constants_fixed(sizes, node)


def pool(sizes: Sizes, node: Node) -> Iterator[Relation]:
    """Windows over positions: batch and channels stay apart from one another."""
    source, result = node.inputs[0], node.outputs[0]
    for axis in (0, 1):
        if source is not None:
            yield from _same(sizes, Slot(source, axis), Slot(result, axis))
    for name in (source, result):
        for axis in range(2, len(sizes.shape(name) or ())):
            if name is not None:
                yield Fixed(Slot(name, axis), f"{named(node)} reads its neighbours")


def reduce(sizes: Sizes, node: Node) -> Iterator[Relation]:
    """A mean, sum or extreme over some axes: the others stay apart."""
    source, result = node.inputs[0] or "", node.outputs[0]
    rank = len(sizes.shape(source) or ())
    over = {axis % rank for axis in node.attributes.get("axes", range(rank))}
    kept = [axis for axis in range(rank) if axis not in over]
    for place, axis in enumerate(kept):
        yield from _same(sizes, Slot(source, axis), Slot(result, axis if node.attributes.get("keepdims", 1) else place))
    for axis in over:
        yield Fixed(Slot(source, axis), f"{named(node)} takes all of them together")


def all_fixed(sizes: Sizes, node: Node) -> Iterator[Relation]:
    """An op of which nothing is known here: everything that it touches stays."""
    for slot in sizes.slots(node):
        yield Fixed(slot, f"{named(node)} blocks the removal of channels")


def constants_fixed(sizes: Sizes, node: Node) -> Iterator[Relation]:
    """Constants beside the tensor stay."""
    for slot in sizes.slots(node):
        if slot.name in sizes.graph.weights:
            yield Fixed(slot, f"{named(node)} blocks the removal of channels")


def _same_axes(sizes: Sizes, source: str | None, result: str) -> Iterator[Relation]:
    for axis in range(len(sizes.shape(source) or ())):
        if source is not None:
            yield from _same(sizes, Slot(source, axis), Slot(result, axis))


def _same(sizes: Sizes, first: Slot, second: Slot) -> Iterator[Tie]:
    size = sizes.size(first)
    if size is not None and size == sizes.size(second):
        yield Tie(first, second)


def _fixed_axes(sizes: Sizes, node: Node, axes: range | list[int]) -> Iterator[Fixed]:
    for name in (node.inputs[0], node.outputs[0]):
        for axis in axes:
            if name is not None and axis < len(sizes.shape(name) or ()):
                yield Fixed(Slot(name, axis), f"{named(node)} mixes channels")
