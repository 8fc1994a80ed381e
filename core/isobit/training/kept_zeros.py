"""Zeros that training keeps, of sparse weights, and those that it cannot leave or cannot keep."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from isobit.encodings.encoding import Encoding
from isobit.encodings.ranges import smallest_scale
from isobit.graph.adapters import find_adapters
from isobit.graph.graph import Graph
from isobit.graph.ops import WEIGHTED
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
        if placement.kind == "weight" and site in quantized and is_sparse(read(constant_name(graph, site))):
            found.append(site)
    return found


def zeros_to_tell(
    graph: Graph, plan: Plan, encodings: Mapping[Site, Encoding], read: Callable[[str], NDArray[np.float32]]
) -> list[str]:
    """Sentences about sparse weights without a quantizer, whose zeros train, and tensors of zeros alone, which do not.

    A grid that was chosen by zeros has no range, so what it rounds stays 0 whatever training does.
    """
    quantized = {constant_name(graph, site) for site in encodings if plan.placements[site].kind == "weight"}
    adapters = {name for adapter in find_adapters(graph) for name in adapter.weights}
    weights = dict.fromkeys(node.inputs[1] or "" for node in graph.nodes if node.op in WEIGHTED)
    others = [name for name in weights if name in graph.weights and name not in quantized and name not in adapters]
    loose = [name for name in others if is_sparse(value := read(name)) and np.any(value)]
    empty = [
        str(site)
        for site, encoding in encodings.items()
        if plan.placements[site].kind != "bias"
        and encoding.spec.is_integer
        and np.all(encoding.scale <= 2 * smallest_scale(encoding.spec))
    ]
    told = []
    if loose:
        told.append(
            f"{len(loose)} sparse weights have no quantizer, {loose[0]!r} among them, so their zeros train: give them "
            "a format, or set them to zero again after each step"
        )
    if empty:
        told.append(
            f"{len(empty)} tensors were 0 everywhere when they were calibrated, {empty[0]!r} among them: their grids "
            "have no range, so they stay 0 in training. Leave them in float (exclude=, or None in overrides=), or "
            "calibrate when they hold something"
        )
    return told


def is_sparse(value: NDArray[np.float32]) -> bool:
    """Whether at least a quarter of a weight is exactly zero."""
    return bool(value.size) and float(np.mean(value == 0)) >= _SPARSE
