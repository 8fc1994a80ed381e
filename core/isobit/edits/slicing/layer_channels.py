"""Layers with weights: what they read ends at the input axis of the weight, what they make begins at the other."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from isobit.edits.slicing.channel_relations import Fixed, Relation, Sizes, Slot, Tie, named
from isobit.edits.slicing.elementwise_channels import all_fixed
from isobit.graph.graph import Graph, Node
from isobit.graph.layout import conv_transpose_layout


def convolution(sizes: Sizes, node: Node) -> Iterator[Relation]:
    """Conv and ConvTranspose with a constant weight, (out, in/groups, *kernel) for both.

    Depthwise layers lose whole groups; others keep their groups, and each of them loses the same places.
    """
    source, weight, result = node.inputs[0] or "", node.inputs[1] or "", node.outputs[0]
    if weight not in sizes.graph.weights:
        yield from all_fixed(sizes, node)
        return
    out, per_group = (int(n) for n in sizes.graph.weights[weight].shape[:2])
    groups = int(node.attributes.get("group", 1))
    if (bias := node.input(2)) is not None:
        yield Tie(Slot(weight, 0), Slot(bias, 0))
    yield Tie(Slot(result, 1), Slot(weight, 0))
    yield Tie(Slot(source, 0), Slot(result, 0))
    if groups == 1:
        yield Tie(Slot(source, 1), Slot(weight, 1))
    elif per_group == 1:
        yield Tie(Slot(source, 1), Slot(weight, 0), np.arange(out) // (out // groups), np.arange(out))
    elif node.op == "ConvTranspose" and not unrolls_groups(sizes.graph, node):
        for slot in (Slot(source, 1), Slot(result, 1)):
            yield Fixed(slot, f"{named(node)} is a transposed convolution in groups, its weight stored in another form")
    else:
        read, made = np.arange(groups * per_group), np.arange(out)
        yield Tie(Slot(source, 1), Slot(weight, 1), read, read % per_group)
        yield Tie(Slot(weight, 0), Slot(weight, 0), made, made % (out // groups))
    for name in (source, weight, result):
        for axis in range(2, len(sizes.shape(name) or ())):
            yield Fixed(Slot(name, axis), f"{named(node)} reads its neighbours")


def unrolls_groups(graph: Graph, node: Node) -> bool:
    """Whether a transposed convolution in groups reads its weight as ONNX and PyTorch store it, or as it is here."""
    groups, weight = int(node.attributes.get("group", 1)), node.input(1)
    if node.op != "ConvTranspose" or groups == 1 or weight not in graph.weights or weight is None:
        return False
    out, per_group, *kernel = graph.weights[weight].shape
    stored = conv_transpose_layout((per_group * groups, out // groups, *kernel), groups)
    return graph.weights[weight].layout in ((), stored)


def linear(sizes: Sizes, node: Node) -> Iterator[Relation]:
    """x (..., in) with weight (out, in)."""
    source, weight, result = node.inputs[0] or "", node.inputs[1] or "", node.outputs[0]
    if weight not in sizes.graph.weights:
        yield from all_fixed(sizes, node)
        return
    rank = len(sizes.shape(source) or ())
    if (bias := node.input(2)) is not None:
        yield Tie(Slot(weight, 0), Slot(bias, 0))
    yield Tie(Slot(source, rank - 1), Slot(weight, 1))
    yield Tie(Slot(result, rank - 1), Slot(weight, 0))
    for axis in range(rank - 1):
        yield Tie(Slot(source, axis), Slot(result, axis))


def matmul(sizes: Sizes, node: Node) -> Iterator[Relation]:
    """(..., m, k) times (..., k, n), or times a constant (..., n, k); axes in front are broadcast."""
    first, second, result = node.inputs[0] or "", node.inputs[1] or "", node.outputs[0]
    shapes = [sizes.shape(name) for name in (first, second, result)]
    if first in sizes.graph.weights or any(shape is None or len(shape) < 2 for shape in shapes):
        yield from all_fixed(sizes, node)
        return
    ranks = [len(shape or ()) for shape in shapes]
    inner, outer = (1, 2) if second in sizes.graph.weights else (2, 1)  # a constant is (out, in)
    yield Tie(Slot(first, ranks[0] - 1), Slot(second, ranks[1] - inner))
    yield Tie(Slot(result, ranks[2] - 2), Slot(first, ranks[0] - 2))
    yield Tie(Slot(result, ranks[2] - 1), Slot(second, ranks[1] - outer))
    for name, rank in ((first, ranks[0]), (second, ranks[1])):
        for axis in range(3, rank + 1):
            if sizes.size(Slot(name, rank - axis)) == sizes.size(Slot(result, ranks[2] - axis)):
                yield Tie(Slot(name, rank - axis), Slot(result, ranks[2] - axis))


def gather(sizes: Sizes, node: Node) -> Iterator[Relation]:
    """Some indices of one axis: the other axes stay what they are, and so do the indices."""
    table, chosen, result = node.inputs[0] or "", sizes.shape(node.input(1)), node.outputs[0]
    shape = sizes.shape(table)
    if shape is None or chosen is None:
        yield from all_fixed(sizes, node)
        return
    axis = int(node.attributes.get("axis", 0)) % len(shape)
    for other in range(len(shape)):
        if other != axis:
            yield Tie(Slot(table, other), Slot(result, other if other < axis else other + len(chosen) - 1))
    yield Fixed(Slot(table, axis), f"{named(node)} may read any of them")


def recurrent(sizes: Sizes, node: Node) -> Iterator[Relation]:
    """The features that an LSTM, GRU or RNN reads; its hidden units are read again by every gate."""
    source, weight = node.inputs[0] or "", node.inputs[1] or ""
    features = Slot(source, len(sizes.shape(source) or ()) - 1)
    is_open = weight in sizes.graph.weights
    if is_open:
        yield Tie(features, Slot(weight, 1))
    for slot in sizes.slots(node):
        if not is_open or slot not in (features, Slot(weight, 1)):
            yield Fixed(slot, f"{named(node)} reads its own outputs")
