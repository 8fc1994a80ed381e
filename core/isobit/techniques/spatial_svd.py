"""Spatial SVD: a convolution of height and width as one of height behind which stands one of width.

Source: Jaderberg et al., "Speeding up Convolutional Neural Networks with Low Rank Expansions", BMVC 2014, scheme 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from isobit.graph.graph import Graph, Node
from isobit.techniques.context import TechniqueContext
from isobit.techniques.low_rank import Floats, Part, Split, check_keep, factorise, spatial_sizes
from isobit.techniques.technique import TechniqueReport


@dataclass(frozen=True)
class SpatialSvd:
    """Split each 2-D convolution of kernel h x w into r filters of h x 1 and, on their output, filters of 1 x w.

    `keep` is the share of each layer's multiply-accumulates that is kept; `ranks` gives single layers a rank of their
    own, by name. Strides, pads and dilations go to the axis that they are of. Convolutions of one row or column, in
    groups, or with a shared weight stay as they are.
    """

    keep: float = 0.5
    ranks: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_keep("SpatialSvd", self.keep)

    def apply(self, context: TechniqueContext) -> TechniqueReport:
        """Split all layers that get cheaper; needs no data."""
        return factorise("SpatialSvd", context.model, _split, self.keep, self.ranks, ("Conv",))


def _split(graph: Graph, node: Node, weight: NDArray[np.float32]) -> Split | str:
    """A row of the matrix for each output channel and column of the kernel, a column for each input channel and row."""
    if weight.ndim != 4:
        return "it is no 2-D convolution"
    out, inputs, height, width = weight.shape
    if min(height, width) == 1:
        return "its kernel is one row or column"
    # The first layer already makes the output's rows (it has their stride), but for all of the input's columns.
    rows, columns = spatial_sizes(graph, node.outputs[0], node) or [1, 1]
    across = (spatial_sizes(graph, node.inputs[0] or "", node) or [1, 1])[1]

    def layers(first: Floats, second: Floats) -> tuple[Part, Part]:
        rank = first.shape[0]
        vertical = first.reshape(rank, inputs, height, 1).astype(np.float32)
        horizontal = second.reshape(out, width, rank).transpose(0, 2, 1)[:, :, None].astype(np.float32)
        return Part(vertical, _along(node, 0)), Part(horizontal, _along(node, 1))

    matrix = weight.astype(np.float64).transpose(0, 3, 1, 2).reshape(out * width, inputs * height)
    return Split(matrix, float(rows * (inputs * height * across + out * width * columns)), layers)


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
