"""Activations written out as products: Gelu (both forms), Swish and HardSwish, one node each."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from isobit.canonical.matching import Fusion, close, fuse, fused, producer_of, scalar, split_operand
from isobit.graph import Graph, Node


def fuse_activations(graph: Graph) -> Graph:
    """A product that is one of the known activations of a single tensor becomes that activation."""
    return fuse(graph, _product_activation)


@dataclass
class _Product:
    """The factors of a chain of Mul and Div: tensors, one constant, and the nodes of the chain."""

    tensors: list[str] = field(default_factory=list)
    constant: float = 1.0
    nodes: list[Node] = field(default_factory=list)


def _factors(graph: Graph, name: str, product: _Product) -> None:
    """Collect the factors of `name`, looking into a Mul or Div that only this product reads."""
    value = scalar(graph, name)
    if value is not None:
        product.constant *= value
        return
    node = graph.producer(name) if name in graph.tensors else None
    inner = node is not None and node.op in ("Mul", "Div") and graph.sole_reader(name) is not None
    if node is None or not inner:
        product.tensors.append(name)
        return
    _multiply(graph, node, product)


def _multiply(graph: Graph, node: Node, product: _Product) -> None:
    left, right = node.inputs
    if left is None or right is None:
        return
    if node.op == "Div":
        divisor = scalar(graph, right)
        if divisor is None or divisor == 0:
            product.tensors.append(node.outputs[0])
            return
        product.constant /= divisor
        product.nodes.append(node)
        _factors(graph, left, product)
        return
    product.nodes.append(node)
    _factors(graph, left, product)
    _factors(graph, right, product)


def _product_activation(graph: Graph, last: Node) -> Fusion | None:
    if last.op not in ("Mul", "Div") or len(last.inputs) != 2:
        return None
    product = _Product()
    _multiply(graph, last, product)
    if len(product.tensors) != 2:
        return None
    for x, gate_name in (product.tensors, product.tensors[::-1]):
        gate = graph.producer(gate_name)
        found = _gated(graph, x, gate, product.constant) if gate is not None else None
        if found is not None and gate is not None:
            op, attributes, inner = found
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
    argument = _Product()
    _factors(graph, inner.input(0) or "", argument)
    nodes = (*argument.nodes, inner)
    if len(argument.tensors) != 1:
        return None
    if inner.op == "Erf" and argument.tensors == [x] and close(argument.constant, math.sqrt(0.5)):
        return "Gelu", {"approximate": "none"}, nodes
    cubic = _cubic(graph, x, argument.tensors[0])
    if inner.op == "Tanh" and cubic is not None and close(argument.constant, math.sqrt(2 / math.pi)):
        return "Gelu", {"approximate": "tanh"}, (*cubic, *nodes)
    return None


def _cubic(graph: Graph, x: str, name: str) -> tuple[Node, ...] | None:
    """The nodes of ``x + 0.044715 * x**3``."""
    add = producer_of(graph, name, "Add")
    if add is None or x not in add.inputs:
        return None
    other = next((i for i in add.inputs if i != x), None)
    product = _Product()
    _factors(graph, other or "", product)
    if not close(product.constant, 0.044715):
        return None
    if product.tensors == [x, x, x]:
        return (*product.nodes, add)
    cube = producer_of(graph, product.tensors[0], "Pow") if len(product.tensors) == 1 else None
    if cube is not None and split_operand(graph, cube) == (x, 3.0):
        return (cube, *product.nodes, add)
    return None
