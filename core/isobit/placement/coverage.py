"""Coverage: how much of a network's weights and multiply-adds runs in integers."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from isobit.graph.graph import Graph, Node
from isobit.graph.multiply_adds import multiply_adds
from isobit.graph.ops import BODIES, RECURRENT, VARIABLES, WEIGHTED, operand
from isobit.graph.sites import Input, Site, Tensor, Weight
from isobit.placement.constants import is_matrix
from isobit.placement.layer_weights import FLOAT_LAYERS, layer_weights
from isobit.placement.plan import Plan, is_inside_chain

#: Layers whose integer kernels hand on integers alone; those of matrix products can hand on floats too.
_ROUND = frozenset({"Conv", "ConvTranspose"})

#: Operations whose constants are weights and biases, tables of embeddings among them.
_LAYERS = WEIGHTED | RECURRENT | {"Gather"}

#: Share of all constants above which those that are no weights are worth a word.
_WORTH_SAYING = 0.01


@dataclass(frozen=True)
class Coverage:
    """What of a network a plan puts in integers: bytes of weights, and multiply-adds of one sample.

    Weights are what layers read as weights and biases, and tables of embeddings. The other constants of floats (masks,
    positions, also those that a layer projects, norms, what is added) are counted apart.
    A convolution whose result stays in float (a phase, a spectrum before its root) counts as float though its operands
    are integers: the kernels of runtimes round what they compute, and without a grid for it they run in float.
    Sizes that the model leaves open count as 1. `uncounted` are layers of unknown shapes, those that a backend keeps
    whole or that run in float on every target, and nodes with weights in bodies of their own (If, Loop, Scan), whose
    multiply-adds are in neither number.
    """

    weight_bytes: int
    integer_weight_bytes: int
    multiply_adds: int
    integer_multiply_adds: int
    uncounted: tuple[str, ...] = ()
    other_bytes: int = 0
    integer_other_bytes: int = 0

    @classmethod
    def of(cls, graph: Graph, plan: Plan) -> Coverage:
        """The coverage of a plan."""
        weights = _weights(graph)
        all_bytes, integer_bytes = {True: 0, False: 0}, {True: 0, False: 0}  # by whether the constant is a weight
        for name, info in graph.weights.items():
            if info.is_float and graph.uses(name):
                size = prod(info.shape) * _bytes_of(info.dtype)
                all_bytes[name in weights] += size
                integer_bytes[name in weights] += size if _is_integer_constant(graph, plan, name) else 0
        total = integer = 0
        uncounted = []
        for node in graph.nodes:
            is_whole = node.attributes.get(VARIABLES) or node.op in FLOAT_LAYERS
            if is_whole or (node.op in BODIES and _holds_weights(graph, node)):
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
        return cls(
            all_bytes[True],
            integer_bytes[True],
            total,
            integer,
            tuple(uncounted),
            all_bytes[False],
            integer_bytes[False],
        )

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
        if self.other_bytes > _WORTH_SAYING * (self.weight_bytes + self.other_bytes):
            share = _percent(self.integer_other_bytes / self.other_bytes)
            text += f", {share} of {self.other_bytes:,} bytes of constants that are no weights"
        count = len(self.uncounted)
        return text + (f" ({count} layers whose operations are not known are not counted)" if count else "")


def _weights(graph: Graph) -> set[str]:
    """Constants that are weights: what layers read as such, biases, tables, and what computed ones are made of."""
    found = set(layer_weights(graph))
    varying = set(graph.inputs)
    waiting: list[str] = []
    for node in graph.nodes:
        if not varying.isdisjoint(node.inputs):
            varying.update(node.outputs)
        if node.op not in _LAYERS:
            continue
        for index, name in enumerate(node.inputs):
            described = operand(node.op, index)
            if name is None or name in varying or described is None:
                continue
            # Whether a matrix that a product reads is a weight was decided above: frequencies of positions are none.
            if name not in graph.weights or described.role != "weight" or node.op not in WEIGHTED:
                waiting.append(name)
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        producer = graph.producer(name)
        if name in graph.weights:
            found.add(name)
        elif producer is not None:
            # What a layer on the way reads as data, cut or shifted first, are positions, and no factor of a weight.
            reads = (
                producer.inputs[1:]
                if producer.op in WEIGHTED and producer.inputs[0] in graph.tensors
                else producer.inputs
            )
            waiting.extend(source for source in reads if source is not None)
    return found


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
