"""What functions of bounded values give far from their middle, where float32 says little."""

from __future__ import annotations

from isobit.graph.graph import Graph
from isobit.graph.ops import VALUE_PRESERVING

#: What these compute lies in an interval of length 1 or 2 and is exact to so much of that, not of itself: one kernel
#: has 0 for a logistic function of 1e-8, and another 6e-8.
_BOUNDED, BOUNDED_ROUNDING = frozenset({"Sigmoid", "Softmax", "Tanh", "HardSigmoid", "Erf"}), 1e-6
_PASSED = VALUE_PRESERVING | {"Mul"}


def rounding_of(graph: Graph, tensor: str | None) -> float:
    """By how much a tensor may differ however small it is: one of a bounded function, moved or multiplied by such."""
    waiting, visited = [tensor], set[str]()
    while waiting:
        name = waiting.pop()
        producer = graph.producer(name) if name is not None else None
        if producer is None or producer.op not in _BOUNDED | _PASSED:
            return 0.0
        if producer.op in _BOUNDED or producer.name in visited:
            continue
        visited.add(producer.name)
        waiting += producer.inputs if producer.op in ("Mul", "Concat") else producer.inputs[:1]
    return BOUNDED_ROUNDING
