"""What layers that read channels lose with some of them, and their weights solved again for those that are left."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from isobit.backend.checked_model import CheckedModel
from isobit.graph.graph import Graph, Node
from isobit.statistics.layer_rows.gram import Gram
from isobit.statistics.layer_rows.patches import Patches
from isobit.techniques.layers.weighted_layer import bias_obstacle
from isobit.techniques.low_rank.input_moments import InputMoments
from isobit.techniques.pruning.channel_groups import ChannelGroup, input_slot
from isobit.techniques.pruning.elimination import Floats, Indices, Reader

#: What follows from a Gram and the weight that it was observed for, for as long as it is there: trials ask again.
_MOMENTS: WeakKeyDictionary[Gram, tuple[InputMoments, float]] = WeakKeyDictionary()


def readers_of(model: CheckedModel, group: ChannelGroup, grams: Mapping[str, Gram]) -> list[Reader]:
    """The readers of a group as linear maps of known inputs; none where the inputs of one of them are not known."""
    found: list[Reader] = []
    for name in group.readers:
        if name not in grams:
            return []
        node = model.graph.node(name)
        matrix = matrix_of(model, node)
        moments, power = moments_of(model.graph, node, grams[name], matrix)
        if power > 0 and moments.second is not None:
            columns = columns_of(model.graph, node, group, matrix.shape[-1])
            found += [
                Reader(second, weight, columns, power, name)
                for second, weight in zip(moments.second, matrix, strict=True)
            ]
    return found


def matrix_of(model: CheckedModel, node: Node) -> Floats:
    """The weight of a layer as (groups, outputs, columns)."""
    weight = model.weight(node.inputs[1] or "").astype(np.float64)
    return np.asarray(Patches.of(model.graph, node).matrix(weight))


def moments_of(graph: Graph, node: Node, gram: Gram, matrix: Floats) -> tuple[InputMoments, float]:
    """The moments about the mean where a bias can take the mean up, else about zero; and the power of the output."""
    found = _MOMENTS.get(gram)
    if found is None:
        centered = gram
        if bias_obstacle(graph, node):
            centered = Gram(gram.count, np.zeros_like(gram.total), gram.second)
        moments = InputMoments.of(centered)
        found = _MOMENTS[gram] = moments, moments.power(matrix)
    return found


def columns_of(graph: Graph, node: Node, group: ChannelGroup, columns: int) -> Indices:
    """The number of the channel that each column of a reader's weight meets, -1 for none of the group."""
    slot = input_slot(graph, node)
    assert slot is not None
    numbers = group.numbers[slot]
    return np.repeat(numbers, columns // len(numbers))


@dataclass(frozen=True, eq=False)
class Solved:
    """The weight of a layer, zero where its inputs are gone, what its bias changes by, and the error of its output."""

    weight: NDArray[np.float32]
    shift: Floats
    error: float


def solved(model: CheckedModel, node: Node, gram: Gram, gone: Indices) -> Solved:
    """The weights of least output error without the columns `gone`; damping holds them near those that were.

    The error is a share of the power of the output about its mean.
    """
    matrix = matrix_of(model, node)
    moments, power = moments_of(model.graph, node, gram, matrix)
    assert moments.second is not None
    assert moments.mean is not None
    new = np.zeros_like(matrix)
    kept = np.setdiff1d(np.arange(matrix.shape[-1]), gone)
    made = 0.0
    for number, (second, weight) in enumerate(zip(moments.second, matrix, strict=True)):
        wanted = second[kept] @ weight.T
        columns = np.linalg.solve(second[np.ix_(kept, kept)], wanted)
        new[number][:, kept] = columns.T
        made += float((columns * wanted).sum())  # the power that they make: least squares leave the rest
    shift = ((matrix - new) @ moments.mean[:, :, None]).reshape(-1)
    error = max(0.0, 1 - made / power) if power > 0 else 0.0
    return Solved(new.reshape(model.graph.weights[node.inputs[1] or ""].shape).astype(np.float32), shift, error)


def gone_columns(
    graph: Graph, groups: Iterable[tuple[ChannelGroup, Iterable[int]]], node: Node, columns: int
) -> Indices:
    """The columns of a reader's weight whose channels go, of all groups that it reads; each with those that stay."""
    gone = np.zeros(columns, np.bool_)
    for group, channels in groups:
        if node.name in group.readers:
            numbers = columns_of(graph, node, group, columns)
            gone |= (numbers >= 0) & ~np.isin(numbers, list(channels))
    return np.flatnonzero(gone)
