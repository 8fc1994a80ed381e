"""Tucker-2: a convolution as a 1x1 layer of fewer channels, the kernel on them, and a 1x1 layer behind it.

Source: Kim et al., "Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile Applications",
ICLR 2016.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from isobit.techniques.low_rank.factors import Ranks, TuckerFactors
from isobit.techniques.low_rank.input_moments import Floats
from isobit.techniques.low_rank.split import Part, Split, as_groups, as_weight, pointwise, positions
from isobit.techniques.technique import TechniqueReport


@dataclass(frozen=True)
class Tucker2:
    """Split each convolution into a 1x1 one of r channels, one of its kernel from r to s, and a 1x1 one on these.

    `keep` is the share of each layer's multiply-accumulates that is kept; `ranks` gives single layers their ranks
    ``[r, s]``, by name; at `keep` 1 these alone are split. A rank that is all of the inputs or outputs leaves out that
    1x1 layer. Ranks are those of each group. With data the error of the outputs is made small, without it, or with
    `data_aware` off, that of the weights. Convolutions of one position, or with a shared weight, stay as they are.
    """

    keep: float = 0.5
    ranks: Mapping[str, Sequence[int]] = field(default_factory=dict)
    data_aware: bool = True

    method = "tucker-2"

    def __post_init__(self) -> None:
        check_keep("Tucker2", self.keep)

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

    def chosen(self, choices: Mapping[str, Choice]) -> Tucker2:
        """The split of these layers alone."""
        return Tucker2(1.0, {name: choice.settings["ranks"] for name, choice in choices.items()}, self.data_aware)

    def apply(self, context: TechniqueContext) -> TechniqueReport:
        """Split all layers that get cheaper, or that `ranks` names."""
        return self._low_rank().apply(context)

    def _low_rank(self) -> LowRank:
        ranks = {name: tuple(each) for name, each in self.ranks.items()}
        return LowRank("Tucker2", _split, ("Conv", "ConvTranspose"), self.keep, ranks, self.data_aware)


def _split(graph: Graph, node: Node, weight: NDArray[np.float32], table: Costs | None) -> Split | str:
    out, inputs, *kernel = weight.shape
    if prod(kernel) == 1:
        return "its kernel is of one position, which WeightSvd is for"
    groups, spatial = groups_of(node), len(kernel)
    before, after = positions(graph, node)
    used = before if node.op == "ConvTranspose" else after
    biases = out if node.input(2) is not None else 0
    read = groups * inputs * before

    def cost(ranks: Ranks) -> Cost:
        first, last = ranks
        whole_in, whole_out = first == inputs, last == out // groups
        weights = groups * first * last * prod(kernel)
        narrow, wide = groups * first * before, groups * last * after
        core = weighted_cost(node.op, weights, biases * whole_out, used, narrow, wide, table)
        reduce = weighted_cost("Conv", groups * first * inputs, 0, before, read, narrow, table)
        expand = weighted_cost("Conv", out * last, biases, after, wide, out * after, table)
        return Cost.sum([core, *([] if whole_in else [reduce]), *([] if whole_out else [expand])])

    def parts(factors: Sequence[Floats]) -> list[Part]:
        # the kernel is the only factor of more than three axes
        return [
            Part(node.op, as_weight(factor, kernel), node.attributes)
            if factor.ndim > 3
            else pointwise(node, factor, spatial)
            for factor in factors
        ]

    return Split(
        (inputs, out // groups),
        groups,
        prod(kernel),
        inputs * prod(kernel),
        weighted_cost(node.op, weight.size, biases, used, read, out * after, table),
        cost,
        lambda moments, wanted, compare: TuckerFactors(as_groups(weight, groups), moments, wanted, compare),
        parts,
    )
