"""A product taken apart: the factors of a chain of Mul, Div, Reciprocal and Neg."""

from __future__ import annotations

from dataclasses import dataclass, field

from isobit.canonical.matching import scalar
from isobit.graph.graph import Graph, Node

_CHAIN = frozenset({"Mul", "Div", "Reciprocal", "Neg"})


@dataclass
class Product:
    """``constant * over[0] * over[1] ... / (under[0] * ...)``, and the nodes of the chain."""

    over: list[str] = field(default_factory=list)
    under: list[str] = field(default_factory=list)
    constant: float = 1.0
    nodes: list[Node] = field(default_factory=list)

    @classmethod
    def of(cls, graph: Graph, name: str) -> Product:
        """The factors of a tensor, looking into each node of the chain that only this product reads."""
        product = cls()
        product.take(graph, name)
        return product

    @classmethod
    def ending_at(cls, graph: Graph, node: Node) -> Product:
        """The factors of a node's result, whoever reads it."""
        product = cls()
        product._open(graph, node, inverse=False)
        return product

    def take(self, graph: Graph, name: str, *, inverse: bool = False) -> None:
        """Multiply by the factors of `name`, or divide by them."""
        value = scalar(graph, name)
        if value is not None and not (inverse and value == 0):
            self.constant *= 1 / value if inverse else value
            return
        node = graph.producer(name) if name in graph.tensors else None
        if node is not None and node.op in _CHAIN and graph.sole_reader(name) is not None:
            self._open(graph, node, inverse=inverse)
        else:
            (self.under if inverse else self.over).append(name)

    def _open(self, graph: Graph, node: Node, *, inverse: bool) -> None:
        left, right = node.input(0), node.input(1)
        if left is None or node.op not in _CHAIN:
            (self.under if inverse else self.over).append(node.outputs[0])
            return
        self.nodes.append(node)
        if node.op == "Neg":
            self.constant = -self.constant
        self.take(graph, left, inverse=inverse != (node.op == "Reciprocal"))
        if right is not None:
            self.take(graph, right, inverse=inverse != (node.op == "Div"))
