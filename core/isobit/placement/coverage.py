"""Coverage: how much of a network's weights and multiply-adds runs in integers."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from isobit.graph.graph import Graph, Node
from isobit.graph.multiply_adds import multiply_adds
from isobit.graph.ops import BODIES, RECURRENT, VARIABLES, WEIGHTED
from isobit.graph.sites import Input, Site, Tensor, Weight
from isobit.placement.constants import is_matrix
from isobit.placement.plan import Plan, is_inside_chain

#: Layers whose integer kernels hand on integers alone; those of matrix products can hand on floats too.
_ROUND = frozenset({"Conv", "ConvTranspose"})


@dataclass(frozen=True)
class Coverage:
    """What of a network a plan puts in integers: bytes of float constants, and multiply-adds of one sample.

    A convolution whose result stays in float (a phase, a spectrum before its root) counts as float though its operands
    are integers: the kernels of runtimes round what they compute, and without a grid for it they run in float.
    Sizes that the model leaves open count as 1. `uncounted` are layers of unknown shapes, those that a backend keeps
    whole, and nodes with weights in bodies of their own (If, Loop, Scan), whose multiply-adds are in neither number.
    """

    weight_bytes: int
    integer_weight_bytes: int
    multiply_adds: int
    integer_multiply_adds: int
    uncounted: tuple[str, ...] = ()

    @classmethod
    def of(cls, graph: Graph, plan: Plan) -> Coverage:
        """The coverage of a plan."""
        weight_bytes = integer_bytes = 0
        for name, info in graph.weights.items():
            if info.is_float and graph.uses(name):
                size = prod(info.shape) * _bytes_of(info.dtype)
                weight_bytes += size
                integer_bytes += size if _is_integer_constant(graph, plan, name) else 0
        total = integer = 0
        uncounted = []
        for node in graph.nodes:
            if node.attributes.get(VARIABLES) or (node.op in BODIES and _holds_weights(graph, node)):
                uncounted.append(node.name)
            if node.op not in WEIGHTED | RECURRENT:
                continue
            count = multiply_adds(graph, node)
            if count is None:
                uncounted.append(node.name)
                continue
            total += count
            operands = (0, 1, 2) if node.op in RECURRENT else (0, 1)
            is_integer = all(_is_integer_input(plan, node, index) for index in operands)
            integer += count if is_integer and (node.op not in _ROUND or _is_rounded(graph, plan, node)) else 0
        return cls(weight_bytes, integer_bytes, total, integer, tuple(uncounted))

    @property
    def weights(self) -> float | None:
        """Share of the bytes of weights that are integers, 0 to 1; None where there are no weights."""
        return self.integer_weight_bytes / self.weight_bytes if self.weight_bytes else None

    @property
    def compute(self) -> float | None:
        """Share of the multiply-adds whose operands are integers, 0 to 1; None where there are none, or none known."""
        return self.integer_multiply_adds / self.multiply_adds if self.multiply_adds else None

    def __str__(self) -> str:
        parts = [
            f"{_percent(share)} of the {what}"
            for share, what in ((self.weights, "weight bytes"), (self.compute, "multiply-adds"))
            if share is not None
        ]
        text = ", ".join(parts) + " in integers" if parts else "there are no weights and no multiply-adds"
        count = len(self.uncounted)
        return text + (f" ({count} layers whose operations are not known are not counted)" if count else "")


def _holds_weights(graph: Graph, node: Node) -> bool:
    """Whether a node with bodies reads matrices of floats, which are weights inside."""
    constants = (graph.weights[name] for name in node.inputs if name is not None and name in graph.weights)
    return any(map(is_matrix, constants))


def _percent(share: float) -> str:
    """One decimal, and never 100 or 0 where something is missing or there."""
    if 0 < share < 1:
        share = min(max(share, 0.001), 0.999)
    return f"{100 * share:.1f} %"


def _bytes_of(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize if dtype in ("float16", "float32", "float64") else 1


def _is_integer(plan: Plan, *sites: Site) -> bool:
    placement = next((plan.placements[site] for site in sites if site in plan.placements), None)
    return placement is not None and placement.spec.is_integer


def _is_integer_constant(graph: Graph, plan: Plan, name: str) -> bool:
    """Whether every reader of a constant has it in integers."""
    return all(_is_integer(plan, Input(use.node.name, use.index), Weight(name)) for use in graph.uses(name))


def _is_integer_input(plan: Plan, node: Node, index: int) -> bool:
    name = node.input(index) or ""
    return _is_integer(plan, Input(node.name, index), Tensor(name), Weight(name))


def _is_rounded(graph: Graph, plan: Plan, node: Node) -> bool:
    """Whether the result of a layer, or of the fused chain that begins with it, is on a grid of integers."""
    name = node.outputs[0]
    while Tensor(name) not in plan.placements and is_inside_chain(plan.floats.get(name, "")):
        reader = graph.sole_reader(name)
        if reader is None:
            return False
        name = reader.node.outputs[0]
    return _is_integer(plan, Tensor(name))
