"""Split: how one layer becomes two or three of lower rank, in their weights, attributes and costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import gcd, prod

import numpy as np
from numpy.typing import NDArray

from isobit.budget import Choice, Cost
from isobit.budget.pareto import pareto
from isobit.graph.graph import Graph, Node
from isobit.targets.costs import Costs
from isobit.techniques.layers.weighted_layer import bias_obstacle, groups_of, weight_obstacle
from isobit.techniques.low_rank.factors import Factors, Ranks
from isobit.techniques.low_rank.input_moments import Floats, InputMoments
from isobit.techniques.low_rank.spans import takes_rows

#: Ranks of each kind that are offered where a layer has two of them.
_OFFERED = 24

#: The share of all that such a rank is below, where it is not all: layers of nearly all ranks cost more than the whole.
_MOST = 0.8


@dataclass(frozen=True, eq=False)
class Part:
    """One of the layers: its op, its weight, canonical, and its attributes."""

    op: str
    weight: NDArray[np.float32]
    attributes: Mapping[str, object]


@dataclass(frozen=True, eq=False)
class Split:
    """How one layer can be split.

    `full` are the largest ranks of each group, `groups` how many groups there are, `whole` what the layer costs now,
    `cost` what it costs at some ranks. `inner` is how many features a first rank has, and `unknowns` how many numbers
    of an output are learned from data. `factors` are found for the moments of its input and the first ranks that will
    be asked for, where asked by more than one way, and `parts` are the layers of them.
    """

    full: Ranks
    groups: int
    inner: int
    unknowns: int
    whole: Cost
    cost: Callable[[Ranks], Cost]
    factors: Callable[[InputMoments, Sequence[int], bool], Factors]
    parts: Callable[[Sequence[Floats]], Sequence[Part]]

    def offered(self, multiple: int, each_by_itself: bool = False) -> list[Ranks]:
        """The ranks worth looking at: with `multiple` channels or a multiple of them, and cheaper in some unit.

        Some of them, evenly spread, where the error of `each_by_itself` takes work of its own.
        """
        step = multiple // gcd(multiple, self.groups)
        axes: list[Sequence[int]] = [range(step, full, step) for full in self.full]
        if each_by_itself:
            axes[0] = _some(axes[0])
        if len(axes) > 1:  # a rank that is all of the inputs, or of the outputs, leaves its factor out
            axes = [range(step, int(_MOST * full), step) for full in self.full]
            axes = [[*_some(axis), full] for axis, full in zip(axes, self.full, strict=True)]
        return [ranks for ranks in product(*axes) if ranks != self.full and self._saves(self.cost(ranks))]

    def _saves(self, cost: Cost) -> bool:
        return cost.macs < self.whole.macs or cost.parameters < self.whole.parameters

    def choices(self, moments: InputMoments, multiple: int, power: float) -> tuple[Choice, ...]:
        """What is offered, with errors as shares of `power`; what another beats in cost and error is left out."""
        by_rows = moments.rows is not None and takes_rows(self.full[0] * self.inner)
        offered = self.offered(multiple, by_rows)
        if not offered or not power > 0:
            return ()
        first = sorted({ranks[0] for ranks in offered if ranks[0] < self.full[0]}) or [1]
        factors, full = self.factors(moments, first, False), words(self.full)

        def choice(ranks: Ranks) -> Choice:
            text = f"rank {words(ranks)} of {full}"
            return Choice(min(ranks), {"ranks": list(ranks)}, self.cost(ranks), factors.error(ranks) / power, text)

        return pareto(map(choice, offered))


#: The split of a layer, or why it has none.
Splitter = Callable[[Graph, Node, NDArray[np.float32], Costs | None], Split | str]


def obstacle(graph: Graph, node: Node) -> str:
    """Why a layer is not split, or an empty text."""
    reason = bias_obstacle(graph, node) or weight_obstacle(graph, node)
    if reason:
        return reason
    if node.op == "ConvTranspose" and ("auto_pad" in node.attributes or "output_shape" in node.attributes):
        return "its padding depends on the size of its input"
    if graph.weights[node.inputs[1] or ""].shape[0] // groups_of(node) == 1:
        return "it has one channel" if groups_of(node) == 1 else "its groups are of one channel"
    return ""


def spatial_sizes(graph: Graph, tensor: str | None, node: Node) -> list[int]:
    """The positions of a tensor along each axis: of images height and width, of a Linear all axes between."""
    info = graph.tensors.get(tensor or "")
    shape = () if info is None or info.shape is None else info.shape
    inner = shape[1:-1] if node.op == "Linear" else shape[2:]
    return [n if isinstance(n, int) else 1 for n in inner]


def positions(graph: Graph, node: Node) -> tuple[int, int]:
    """Positions of a layer's input, and of its output; open sizes count as 1."""
    before, after = (prod(spatial_sizes(graph, tensor, node)) for tensor in (node.inputs[0], node.outputs[0]))
    return before, after


def as_groups(weight: NDArray[np.float32], groups: int) -> Floats:
    """(groups, outputs of a group, inputs of a group, *kernel) in float64."""
    return weight.astype(np.float64).reshape(groups, -1, *weight.shape[1:])


def as_weight(factor: Floats, kernel: Sequence[int] = ()) -> NDArray[np.float32]:
    """A factor (groups, outputs, inputs, ...) as the weight of a layer of this kernel."""
    groups, outputs, inputs = factor.shape[:3]
    return np.ascontiguousarray(factor.reshape(groups * outputs, inputs, *kernel), np.float32)


def pointwise(node: Node, factor: Floats, spatial: int) -> Part:
    """A factor (groups, outputs, inputs) as the layer that maps each position for itself, also of a transposed one."""
    op, attributes = ("Linear" if node.op == "Linear" else "Conv"), dict(node.attributes)
    attributes.pop("output_padding", None)
    attributes |= {name: (1,) * spatial for name in ("kernel_shape", "strides", "dilations") if name in attributes}
    attributes |= {"pads": (0,) * (2 * spatial)} if "pads" in attributes else {}
    return Part(op, as_weight(factor, (1,) * spatial), attributes)


def words(ranks: Ranks) -> str:
    """``12``, or ``8 x 16``."""
    return " x ".join(map(str, ranks))


def _some(axis: Sequence[int]) -> list[int]:
    """All of them, or so many, evenly spread."""
    if len(axis) <= _OFFERED:
        return list(axis)
    chosen = np.unique(np.linspace(0, len(axis) - 1, _OFFERED).round().astype(np.int64))
    return [axis[int(i)] for i in chosen]
