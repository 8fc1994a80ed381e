"""Zeros of sparse weights that training keeps."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
from numpy.typing import NDArray

from isobit.graph.graph import Graph
from isobit.graph.sites import Site
from isobit.placement.plan import Plan, constant_name

#: A weight is sparse on purpose where this share of it is exactly zero.
_SPARSE = 0.25


def sparse_sites(
    graph: Graph, plan: Plan, quantized: Collection[Site], read: Callable[[str], NDArray[np.float32]]
) -> list[Site]:
    """The sites with a quantizer whose constant is a weight of which at least a quarter is zero."""
    found = []
    for site, placement in plan.placements.items():
        if placement.kind == "weight" and site in quantized:
            value = read(constant_name(graph, site))
            if value.size and np.mean(value == 0) >= _SPARSE:
                found.append(site)
    return found
