"""What layers that read channels lose with some of them, and their weights solved again for those that are left."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from isobit.backend.checked_model import CheckedModel
from isobit.graph.graph import Graph, Node
from isobit.statistics.layer_rows.gram import Gram
from isobit.statistics.layer_rows.patches import Patches
from isobit.statistics.layer_rows.rows import Rows, paired_values
from isobit.techniques.layers.weighted_layer import bias_obstacle
from isobit.techniques.low_rank.spans import MOST_MOMENTS
from isobit.techniques.pruning.channel_groups import ChannelGroup, input_slot
from isobit.techniques.pruning.elimination import Floats, Indices, Reader
from isobit.techniques.pruning.row_elimination import RowReader


class Inputs(Protocol):
    """What a layer reads: its ``mean`` (groups, columns), zero where no bias can take the mean up, and the power."""

    @property
    def mean(self) -> Floats:
        """The mean that the bias takes up."""
        ...

    @property
    def power(self) -> float:
        """The mean square of the output, about its mean where there is one."""
        ...

    def readers(self, matrix: Floats, channel: Indices, layer: str) -> Iterator[Reader | RowReader]:
        """Each group of the layer as a linear map, whose errors count as shares of the layer's power."""
        ...


@dataclass(frozen=True, eq=False)
class Moments:
    """By ``second`` (groups, columns, columns), damped; about the mean where a bias can take it up, else about zero."""

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
            squares = np.einsum("gcc->g", gram.second) / gram.count
            floor = _floor(np.einsum("gcc->g", second), squares, gram.columns, gram.count)
            second = second + floor[:, None, None] * np.eye(gram.columns)
            mean = gram.mean if has_bias else np.zeros_like(gram.mean)
            _MOMENTS[rows] = cls(second, mean, power(matrix, second))
        return _MOMENTS[rows]

    def readers(self, matrix: Floats, channel: Indices, layer: str) -> Iterator[Reader]:
        """Of their moments."""
        for second, weight in zip(self.second, matrix, strict=True):
            yield Reader(second, weight, channel, self.power, layer)


@dataclass(frozen=True, eq=False)
class WideInputs:
    """By the rows as they are, for more columns than moments are formed of; `floor` (groups,) is the damping."""

    rows: Rows
    floor: Floats
    mean: Floats
    power: float

    @classmethod
    def of(cls, model: CheckedModel, node: Node, rows: Rows) -> WideInputs:
        """The damping and the power as of `Moments`."""
        matrix, (values, _) = matrix_of(model, node), paired_values(rows, None)
        count, groups, columns = values.shape
        has_bias = not bias_obstacle(model.graph, node)
        mean = values.mean(axis=0, dtype=np.float64) if has_bias else np.zeros((groups, columns))
        squares, about, output = np.zeros(groups), np.zeros(groups), 0.0
        for start in range(0, count, _CHUNK):
            part = values[start : start + _CHUNK].astype(np.float64).transpose(1, 0, 2)
            squares += np.square(part).sum(axis=(1, 2)) / count
            part = part - mean[:, None]
            about += np.square(part).sum(axis=(1, 2)) / count
            output += float(np.square(part @ matrix.swapaxes(1, 2)).sum()) / count
        floor = _floor(about, squares, columns, count)
        return cls(rows, floor, mean, output + float(floor @ np.square(matrix).sum(axis=(1, 2))))

    def readers(self, matrix: Floats, channel: Indices, layer: str) -> Iterator[RowReader]:
        """Of the rows about the mean."""
        for group, weight in enumerate(matrix):
            values = paired_values(self.rows, None)[0][:, group] - self.mean[group].astype(np.float32)
            yield RowReader(values, float(self.floor[group]), weight, channel, self.power, layer)


def inputs_of(model: CheckedModel, node: Node, rows: Rows) -> Inputs:
    """What a layer reads, in the form that takes less memory."""
    wide = matrix_of(model, node).shape[2] > MOST_MOMENTS
    return (WideInputs if wide else Moments).of(model, node, rows)


def _floor(second: Floats, squares: Floats, columns: int, count: int) -> Floats:
    """The damping of each group, from the squares of all of its columns about the mean, and about zero."""
    floor = min(1.0, max(_LEAST, _DAMPING * columns / count)) * second / columns
    # a mean far above the deviations leaves rounding of its square, which may be less than nothing
    floor = np.maximum(floor, _ROUNDING * squares)
    floor[floor <= 0] = 1.0  # inputs that never change: the weights stay as they are
    return np.asarray(floor)


#: Damping in means of the diagonal: so much where there are as many rows as columns, less with more rows.
_DAMPING, _LEAST = 0.01, 1e-6

#: What sums of squares are off by at most, of all columns together.
_ROUNDING = 8 * float(np.finfo(np.float64).eps)

#: Rows that are multiplied at once in float64.
_CHUNK = 64

_MOMENTS: WeakKeyDictionary[Rows, Moments] = WeakKeyDictionary()


def power(matrix: Floats, second: Floats) -> float:
    """The mean square of the output of a weight (groups, outputs, columns), of all outputs."""
    return float(((matrix @ second) * matrix).sum())


def readers_of(model: CheckedModel, group: ChannelGroup, rows: Mapping[str, Rows]) -> list[Reader | RowReader]:
    """The readers of a group as linear maps of known inputs; none where the inputs of one of them are not known."""
    found: list[Reader | RowReader] = []
    for name in group.readers:
        if name not in rows:
            return []
        node = model.graph.node(name)
        matrix = matrix_of(model, node)
        inputs = inputs_of(model, node, rows[name])
        if inputs.power > 0:
            found += inputs.readers(matrix, columns_of(model.graph, node, group, matrix.shape[-1]), name)
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
    matrix, inputs = matrix_of(model, node), inputs_of(model, node, rows)
    new, lost = np.zeros_like(matrix), 0.0
    for number, reader in enumerate(inputs.readers(matrix, gone, node.name)):
        new[number], error = reader.without(gone)
        lost += error
    shift = ((matrix - new) @ inputs.mean[:, :, None]).reshape(-1)
    share = max(0.0, lost / inputs.power) if inputs.power > 0 else 0.0
    return Solved(new.reshape(model.graph.weights[node.inputs[1] or ""].shape).astype(np.float32), shift, share)


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
