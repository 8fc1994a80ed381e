"""What a Mul that is added costs: its share of the time of a network, estimated from sizes alone."""

from __future__ import annotations

import math

from isobit.graph.graph import Graph
from isobit.placement.coverage import Coverage
from isobit.placement.plan import Plan, is_inside_chain
from isobit.techniques.layers.layer_pairs import FLATTENING

#: Multiply-adds of integers in the time in which a float operation goes through one element of a tensor: about that on
#: x86 processors with AVX2 or VNNI in onnxruntime, where such operations are bound by memory.
_MULTIPLY_ADDS = 32

_VIEWS = FLATTENING | {"Reshape", "Identity", "Squeeze", "Unsqueeze"}


def network_elements(graph: Graph, plan: Plan) -> float:
    """The time of a network, as the number of elements that a float operation goes through in it.

    Open sizes count as 1. Operations that run in the kernel of the one before them count nothing.
    """
    results = [
        node.outputs[0]
        for node in graph.nodes
        if node.op not in _VIEWS and not is_inside_chain(plan.floats.get(node.input(0) or "", ""))
    ]
    return Coverage.of(graph, plan).multiply_adds / _MULTIPLY_ADDS + sum(elements(graph, name) for name in results)


def elements(graph: Graph, tensor: str) -> int:
    """How many elements one sample of a tensor has; open sizes count as 1."""
    info = graph.tensors.get(tensor)
    sizes = () if info is None or info.shape is None else info.shape[1:]
    return math.prod(size for size in sizes if isinstance(size, int))
