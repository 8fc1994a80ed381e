"""Weight SVD: a linear layer or a convolution as one of fewer outputs, behind which stands a linear map.

Source: Zhang et al., "Accelerating Very Deep Convolutional Networks for Classification and Detection", IEEE TPAMI 2016,
section 3.1, without its nonlinear reconstruction; Denton et al., NIPS 2014, for linear layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from isobit.graph.graph import Graph, Node
from isobit.techniques.context import TechniqueContext
from isobit.techniques.low_rank import Floats, Part, Split, check_keep, cost, factorise
from isobit.techniques.technique import TechniqueReport


@dataclass(frozen=True)
class WeightSvd:
    """Split each linear layer and convolution into one of r outputs and, on them, a linear layer or 1x1 convolution.

    `keep` is the share of each layer's multiply-accumulates that is kept; `ranks` gives single layers a rank of their
    own, by name. Convolutions in groups, and layers with a shared weight, stay as they are.
    """

    keep: float = 0.5
    ranks: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_keep("WeightSvd", self.keep)

    def apply(self, context: TechniqueContext) -> TechniqueReport:
        """Split all layers that get cheaper; needs no data."""
        return factorise("WeightSvd", context.model, _split, self.keep, self.ranks, ("Conv", "Linear"))


def _split(graph: Graph, node: Node, weight: NDArray[np.float32]) -> Split | str:
    """The matrix has a row for each output channel."""
    out, *rest = weight.shape
    spatial = len(rest) - 1
    matrix = weight.astype(np.float64).reshape(out, -1)

    def layers(first: Floats, second: Floats) -> tuple[Part, Part]:
        rank = first.shape[0]
        narrow = first.reshape(rank, *rest).astype(np.float32)
        wide = second.reshape(out, rank, *(1,) * spatial).astype(np.float32)
        return Part(narrow, {}), Part(wide, _pointwise(node, spatial))

    return Split(matrix, cost(graph, node, matrix.shape[1]) + cost(graph, node, out), layers)


def _pointwise(node: Node, spatial: int) -> dict[str, object]:
    """The attributes of a convolution that sees one position."""
    if node.op == "Linear":
        return {}
    ones = {name: (1,) * spatial for name in ("kernel_shape", "strides", "dilations") if name in node.attributes}
    return {**ones, "pads": (0,) * (2 * spatial)} if "pads" in node.attributes else dict(ones)
