"""Spatial SVD: a convolution of height and width as one of height behind which stands one of width.

Source: Jaderberg et al., "Speeding up Convolutional Neural Networks with Low Rank Expansions", BMVC 2014, scheme 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

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


@dataclass(frozen=True)
class SpatialSvd:
    """Split each 2-D convolution of kernel h x w into r filters of h x 1 and, on their output, filters of 1 x w.

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
        return LowRank("SpatialSvd", _split, ("Conv",), self.keep, ranks, self.data_aware)


def _split(graph: Graph, node: Node, weight: NDArray[np.float32], table: Costs | None) -> Split | str:
    if weight.ndim != 4:
        return "it is no 2-D convolution"
    out, inputs, height, width = weight.shape
    if min(height, width) == 1:
        return "its kernel is one row or column"
    groups = groups_of(node)
    # The first layer already makes the output's rows (it has their stride), but for all of the input's columns.
    rows, columns = spatial_sizes(graph, node.outputs[0], node) or [1, 1]
    across = (spatial_sizes(graph, node.inputs[0], node) or [1, 1])[1]
    biases = out if node.input(2) is not None else 0

    def cost(ranks: Ranks) -> Cost:
        rank = ranks[0] * groups
        first = weighted_cost("Conv", rank * inputs * height, 0, rows * across, rank * rows * across, table)
        return first + weighted_cost(
            "Conv", out * ranks[0] * width, biases, rows * columns, out * rows * columns, table
        )

    def parts(factors: Sequence[Floats]) -> list[Part]:
        vertical, horizontal = factors
        return [
            Part(as_weight(vertical, (height, 1)), _along(node, 0)),
            Part(as_weight(horizontal, (1, width)), _along(node, 1)),
        ]

    return Split(
        (min(out // groups * width, inputs * height),),
        groups,
        width,
        inputs * height * width,
        weighted_cost("Conv", weight.size, biases, rows * columns, out * rows * columns, table),
        cost,
        lambda moments, wanted, compare: WidthFactors(as_groups(weight, groups), moments, wanted, compare),
        parts,
    )


def _along(node: Node, axis: int) -> dict[str, object]:
    """The attributes of a convolution along one axis: nothing happens along the other."""
    other_axis, attributes = 1 - axis, node.attributes
    changed: dict[str, object] = {}
    for name in ("kernel_shape", "strides", "dilations"):
        if name in attributes:
            values = list(attributes[name])
            values[other_axis] = 1
            changed[name] = tuple(values)
    if "pads" in attributes:
        pads = list(attributes["pads"])
        pads[other_axis] = pads[other_axis + 2] = 0
        changed["pads"] = tuple(pads)
    return changed
