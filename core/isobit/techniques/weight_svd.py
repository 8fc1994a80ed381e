"""Weight SVD: a linear layer or a convolution as one of fewer outputs, behind which stands a linear map.

Source: Zhang et al., "Accelerating Very Deep Convolutional Networks for Classification and Detection", IEEE TPAMI 2016,
section 3.1, without its nonlinear reconstruction; Denton et al., NIPS 2014, for linear layers.
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
from isobit.techniques.low_rank.factors import OutputFactors, Ranks
from isobit.techniques.low_rank.input_moments import Floats
from isobit.techniques.low_rank.split import Part, Split, as_groups, as_weight, pointwise, positions
from isobit.techniques.technique import TechniqueReport


@dataclass(frozen=True)
class WeightSvd:
    """Split each linear layer and convolution into one of r outputs and, on them, a linear layer or 1x1 convolution.

    Of a transposed convolution the first one is transposed.

    `keep` is the share of each layer's multiply-accumulates that is kept; `ranks` gives single layers a rank of their
    own, by name; at `keep` 1 these alone are split. Ranks are those of each group. With data the error of the outputs
    is the least that such a pair can have, without it, or with `data_aware` off, that of the weights. Layers with a
    shared weight stay as they are.
    """

    keep: float = 0.5
    ranks: Mapping[str, int] = field(default_factory=dict)
    data_aware: bool = True

    method = "weight-svd"

    def __post_init__(self) -> None:
        check_keep("WeightSvd", self.keep)

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
        """Each layer with the ranks that make it cheaper, or why there are none."""
        return self._low_rank().candidates(context, self.method, multiple, table)

    def chosen(self, choices: Mapping[str, Choice]) -> WeightSvd:
        """The split of these layers alone."""
        return WeightSvd(1.0, {name: choice.settings["ranks"][0] for name, choice in choices.items()}, self.data_aware)

    def apply(self, context: TechniqueContext) -> TechniqueReport:
        """Split all layers that get cheaper, or that `ranks` names."""
        return self._low_rank().apply(context)

    def _low_rank(self) -> LowRank:
        ranks = {name: (rank,) for name, rank in self.ranks.items()}
        return LowRank("WeightSvd", _split, ("Conv", "ConvTranspose", "Linear"), self.keep, ranks, self.data_aware)


def _split(graph: Graph, node: Node, weight: NDArray[np.float32], table: Costs | None) -> Split | str:
    out, *rest = weight.shape
    groups, spatial = groups_of(node), len(rest) - 1
    before, after = positions(graph, node)
    used = before if node.op == "ConvTranspose" else after
    behind = "Linear" if node.op == "Linear" else "Conv"
    biases = out if node.input(2) is not None else 0
    inputs = groups * rest[0] * before

    def cost(ranks: Ranks) -> Cost:
        rank = ranks[0] * groups
        narrow = weighted_cost(node.op, rank * prod(rest), 0, used, inputs, rank * after, table)
        return narrow + weighted_cost(behind, out * ranks[0], biases, after, rank * after, out * after, table)

    def parts(factors: Sequence[Floats]) -> list[Part]:
        narrow, wide = factors
        return [Part(node.op, as_weight(narrow, rest[1:]), node.attributes), pointwise(node, wide, spatial)]

    return Split(
        (min(out // groups, prod(rest)),),
        groups,
        1,
        out // groups,
        weighted_cost(node.op, weight.size, biases, used, inputs, out * after, table),
        cost,
        lambda moments, wanted, compare: OutputFactors(as_groups(weight, groups), moments),
        parts,
    )
