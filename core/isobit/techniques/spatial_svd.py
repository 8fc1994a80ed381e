"""Spatial SVD: a convolution of height and width as one of height behind which stands one of width.

Source: Jaderberg et al., "Speeding up Convolutional Neural Networks with Low Rank Expansions", BMVC 2014, scheme 2.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
from numpy.typing import NDArray

from isobit.budget import Candidate, Choice, Cost, weighted_cost
from isobit.graph.graph import Graph, Node
from isobit.targets.costs import Costs
from isobit.techniques.context import Requests, TechniqueContext
from isobit.techniques.layers.weighted_layer import groups_of
from isobit.techniques.low_rank.factorise import LowRank, check_keep
from isobit.techniques.low_rank.factors import Ranks, WidthFactors
from isobit.techniques.low_rank.input_moments import Floats
from isobit.techniques.low_rank.split import Part, Split, as_groups, as_weight, spatial_sizes
from isobit.techniques.technique import TechniqueReport

#: What attributes of a window are along an axis on which a layer does nothing.
_PER_AXIS = {"kernel_shape": 1, "strides": 1, "dilations": 1, "pads": 0, "output_padding": 0}


@dataclass(frozen=True)
class SpatialSvd:
    """Split each convolution of kernel h x w into r filters of h x 1 and, on their output, filters of 1 x w.

    Those of three dimensions too, at the first axis that has more than one position: t x 1 x 1 and 1 x h x w. Both
    layers of a transposed convolution are transposed.

    `keep` is the share of each layer's multiply-accumulates that is kept; `ranks` gives single layers a rank of their
    own, by name; at `keep` 1 these alone are split. Strides, pads and dilations go to the axis that they are of; ranks
    are those of each group. With data the error of the outputs is the least, without it, or with `data_aware` off, that
    of the weights. Convolutions of one row or column, or with a shared weight, stay as they are.
    """

    keep: float = 0.5
    ranks: Mapping[str, int] = field(default_factory=dict)
    data_aware: bool = True

    method = "spatial-svd"

    def __post_init__(self) -> None:
        check_keep("SpatialSvd", self.keep)

    @property
    def uses_data(self) -> bool:
        """Whether it takes data, where there is some."""
        return self.data_aware

    def requests(self, context: TechniqueContext) -> Requests:
        """The rows of the layers' inputs."""
        return self._low_rank().requests(context)

    def candidates(
        self, context: TechniqueContext, *, multiple: int = 1, table: Costs | None = None
    ) -> list[Candidate]:
        """Each convolution with the ranks that make it cheaper, or why there are none."""
        return self._low_rank().candidates(context, self.method, multiple, table)

    def chosen(self, choices: Mapping[str, Choice]) -> SpatialSvd:
        """The split of these layers alone."""
        return SpatialSvd(1.0, {name: choice.settings["ranks"][0] for name, choice in choices.items()}, self.data_aware)

    def apply(self, context: TechniqueContext) -> TechniqueReport:
        """Split all layers that get cheaper, or that `ranks` names."""
        return self._low_rank().apply(context)

    def _low_rank(self) -> LowRank:
        ranks = {name: (rank,) for name, rank in self.ranks.items()}
        return LowRank("SpatialSvd", _split, ("Conv", "ConvTranspose"), self.keep, ranks, self.data_aware)


def _split(graph: Graph, node: Node, weight: NDArray[np.float32], table: Costs | None) -> Split | str:
    out, inputs, *kernel = weight.shape
    if len(kernel) < 2:
        return "it is a 1-D convolution"
    first = next((axis for axis, taps in enumerate(kernel, 1) if taps > 1), len(kernel))
    height, width = prod(kernel[:first]), prod(kernel[first:])
    if width == 1 or height == 1:
        return "its kernel is one row or column"
    groups, axes = groups_of(node), range(len(kernel))
    biases = out if node.input(2) is not None else 0
    before = spatial_sizes(graph, node.inputs[0], node) or [1 for _ in axes]
    after = spatial_sizes(graph, node.outputs[0], node) or [1 for _ in axes]
    # The first layer already makes the output's rows (it has their stride), but for all of the input's columns. Weights
    # of transposed layers are used once for each position of their input.
    between = [*after[:first], *before[first:]]
    used = [before, between] if node.op == "ConvTranspose" else [between, after]
    read = groups * inputs * prod(before)
    uses = prod(before if node.op == "ConvTranspose" else after)

    def cost(ranks: Ranks) -> Cost:
        rank = ranks[0] * groups
        vertical, horizontal, made = rank * inputs * height, out * ranks[0] * width, rank * prod(between)
        narrow = weighted_cost(node.op, vertical, 0, prod(used[0]), read, made, table)
        return narrow + weighted_cost(node.op, horizontal, biases, prod(used[1]), made, out * prod(after), table)

    def parts(factors: Sequence[Floats]) -> list[Part]:
        vertical, horizontal = factors
        down, across = axes[:first], axes[first:]
        return [
            Part(node.op, as_weight(vertical, [kernel[a] if a in down else 1 for a in axes]), _along(node, down)),
            Part(node.op, as_weight(horizontal, [kernel[a] if a in across else 1 for a in axes]), _along(node, across)),
        ]

    flat = weight.reshape(out, inputs, height, width)
    return Split(
        (min(out // groups * width, inputs * height),),
        groups,
        width,
        inputs * height * width,
        weighted_cost(node.op, weight.size, biases, uses, read, out * prod(after), table),
        cost,
        lambda moments, wanted, compare: WidthFactors(as_groups(flat, groups), moments, wanted, compare),
        parts,
    )


def _along(node: Node, axes: Collection[int]) -> dict[str, object]:
    """The attributes of a convolution along these axes: nothing happens along the others."""
    attributes = dict(node.attributes)
    for name, nothing in _PER_AXIS.items():
        if name in attributes:
            values: Sequence[int] = attributes[name]
            count = len(values) if name != "pads" else len(values) // 2
            attributes[name] = tuple(n if i % count in axes else nothing for i, n in enumerate(values))
    return attributes
