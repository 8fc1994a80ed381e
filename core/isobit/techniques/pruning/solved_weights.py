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
from isobit.statistics.layer_rows.rows import Rows
from isobit.techniques.layers.weighted_layer import bias_obstacle
from isobit.techniques.pruning.channel_groups import ChannelGroup, input_slot
from isobit.techniques.pruning.elimination import Floats, Indices, Reader


@dataclass(frozen=True, eq=False)
class Moments:
    """What a layer reads: ``second`` (groups, columns, columns), damped, ``mean`` (groups, columns), and the power.

    `second` is about the mean where a bias can take the mean up, else about zero, and `mean` is zero then. `power` is
    that of the output.
    """

    second: Floats
    mean: Floats
    power: float

    @classmethod
    def of(cls, model: CheckedModel, node: Node, rows: Rows) -> Moments:
        """Those of a layer's rows, worked out once for as long as these are there: trials ask for them again."""
        if rows not in _MOMENTS:
            gram, matrix = Gram.of(rows), matrix_of(model, node)
            has_bias = not bias_obstacle(model.graph, node)
            second = (gram.centered().second if has_bias else gram.second) / gram.count
            share = min(1.0, max(_LEAST, _DAMPING * gram.columns / gram.count))
            floor = share * np.einsum("gcc->g", second) / gram.columns
            # a mean far above the deviations leaves rounding of its square, which may be less than nothing
            floor = np.maximum(floor, _ROUNDING * np.einsum("gcc->g", gram.second) / gram.count)
            floor[floor <= 0] = 1.0  # inputs that never change: the weights stay as they are
            second = second + floor[:, None, None] * np.eye(gram.columns)
            mean = gram.mean if has_bias else np.zeros_like(gram.mean)
            _MOMENTS[rows] = cls(second, mean, power(matrix, second))
        return _MOMENTS[rows]


#: Damping in means of the diagonal: so much where there are as many rows as columns, less with more rows.
_DAMPING, _LEAST = 0.01, 1e-6

#: What sums of squares are off by at most, of all columns together.
_ROUNDING = 8 * float(np.finfo(np.float64).eps)

_MOMENTS: WeakKeyDictionary[Rows, Moments] = WeakKeyDictionary()


def power(matrix: Floats, second: Floats) -> float:
    """The mean square of the output of a weight (groups, outputs, columns), of all outputs."""
    return float(((matrix @ second) * matrix).sum())


def readers_of(model: CheckedModel, group: ChannelGroup, rows: Mapping[str, Rows]) -> list[Reader]:
    """The readers of a group as linear maps of known inputs; none where the inputs of one of them are not known."""
    found: list[Reader] = []
    for name in group.readers:
        if name not in rows:
            return []
        node = model.graph.node(name)
        matrix = matrix_of(model, node)
        moments = Moments.of(model, node, rows[name])
        if moments.power > 0:
            columns = columns_of(model.graph, node, group, matrix.shape[-1])
            found += [
                Reader(second, weight, columns, moments.power, name)
                for second, weight in zip(moments.second, matrix, strict=True)
            ]
    return found


def matrix_of(model: CheckedModel, node: Node) -> Floats:
    """The weight of a layer as (groups, outputs, columns)."""
    weight = model.weight(node.inputs[1] or "").astype(np.float64)
    return np.asarray(Patches.of(model.graph, node).matrix(weight))


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


def solved(model: CheckedModel, node: Node, rows: Rows, gone: Indices) -> Solved:
    """The weights of least output error without the columns `gone`; damping holds them near those that were.

    The error is a share of the power of the output about its mean.
    """
    matrix, moments = matrix_of(model, node), Moments.of(model, node, rows)
    new = np.zeros_like(matrix)
    kept = np.setdiff1d(np.arange(matrix.shape[-1]), gone)
    made = 0.0
    for number, (second, weight) in enumerate(zip(moments.second, matrix, strict=True)):
        wanted = second[kept] @ weight.T
        columns = np.linalg.solve(second[np.ix_(kept, kept)], wanted)
        new[number][:, kept] = columns.T
        made += float((columns * wanted).sum())  # the power that they make: least squares leave the rest
    shift = ((matrix - new) @ moments.mean[:, :, None]).reshape(-1)
    error = max(0.0, 1 - made / moments.power) if moments.power > 0 else 0.0
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
