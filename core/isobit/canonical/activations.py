"""Activations written out as products: Gelu (both forms), Swish and HardSwish, one node each."""

from __future__ import annotations

import math

from isobit.canonical.matching import Fusion, close, fuse, fused, producer_of, split_operand
from isobit.canonical.products import Product
from isobit.graph.graph import Graph, Node


def fuse_activations(graph: Graph) -> Graph:
    """A product that is one of the known activations of a single tensor becomes that activation."""
    return fuse(graph, _product_activation)


def _product_activation(graph: Graph, last: Node) -> Fusion | None:
    if last.op not in ("Mul", "Div") or len(last.inputs) != 2:
        return None
    product = Product.ending_at(graph, last)
    if len(product.over) != 2 or product.under:
        return None
    for x, gate_name in (product.over, product.over[::-1]):
        gate = graph.producer(gate_name)
        activation = _gated(graph, x, gate, product.constant) if gate is not None else None
        if activation is not None and gate is not None:
            op, attributes, inner = activation
            covers = (*inner, gate, *product.nodes[::-1])
            return fused(last, op, (x,), covers, **attributes)
    return None


def _gated(graph: Graph, x: str, gate: Node, constant: float) -> tuple[str, dict[str, object], tuple[Node, ...]] | None:
    """The activation ``constant * x * gate(x)``: its name, attributes, and the nodes inside the gate."""
    if gate.op == "Sigmoid" and gate.input(0) == x and close(constant, 1.0):
        return "Swish", {}, ()
    if gate.op == "HardSigmoid" and gate.input(0) == x and close(constant, 1.0):
        standard = close(gate.attributes.get("alpha"), 1 / 6) and close(gate.attributes.get("beta"), 0.5)
        return ("HardSwish", {}, ()) if standard else None
    if gate.op == "Clip" and close(constant, 1 / 6):
        return _relu6_gate(graph, x, gate)
    if gate.op == "Add" and close(constant, 0.5):
        return _gelu(graph, x, gate)
    return None


def _relu6_gate(graph: Graph, x: str, gate: Node) -> tuple[str, dict[str, object], tuple[Node, ...]] | None:
    add = producer_of(graph, gate.input(0), "Add")
    bounds = (gate.attributes.get("min"), gate.attributes.get("max"))
    if add is not None and bounds == (0, 6) and split_operand(graph, add) == (x, 3.0):
        return "HardSwish", {}, (add,)
    return None


def _gelu(graph: Graph, x: str, gate: Node) -> tuple[str, dict[str, object], tuple[Node, ...]] | None:
    operands = split_operand(graph, gate)
    if operands is None or operands[1] != 1.0:
        return None
    inner = graph.producer(operands[0])
    if inner is None or inner.op not in ("Erf", "Tanh") or inner.input(0) is None:
        return None
    argument = Product.of(graph, inner.input(0) or "")
    nodes = (*argument.nodes, inner)
    if len(argument.over) != 1 or argument.under:
        return None
    if inner.op == "Erf" and argument.over == [x] and close(argument.constant, math.sqrt(0.5)):
        return "Gelu", {"approximate": "none"}, nodes
    cubic = _cubic(graph, x, argument.over[0])
    if inner.op == "Tanh" and cubic is not None and close(argument.constant, math.sqrt(2 / math.pi)):
        return "Gelu", {"approximate": "tanh"}, (*cubic, *nodes)
    return None


def _cubic(graph: Graph, x: str, name: str) -> tuple[Node, ...] | None:
    """The nodes of ``x + 0.044715 * x**3``."""
    add = producer_of(graph, name, "Add")
    if add is None or x not in add.inputs:
        return None
    product_name = next((i for i in add.inputs if i != x), None)
    product = Product.of(graph, product_name or "")
    if not close(product.constant, 0.044715) or product.under:
        return None
    if product.over == [x, x, x]:
        return (*product.nodes, add)
    cube = producer_of(graph, product.over[0], "Pow") if len(product.over) == 1 else None
    if cube is not None and split_operand(graph, cube) == (x, 3.0):
        return (cube, *product.nodes, add)
    return None
