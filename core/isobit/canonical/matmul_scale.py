"""Attention's scale: constants multiplied onto the operands or the result of a product of activations.

Exporters put 1/sqrt(d) on Q, on K, on both (its root) or on the product. It is one number, so it is one attribute,
``scale``, of the MatMul, and no quantizer sits between the product and its scale.
"""

from __future__ import annotations

from isobit.canonical.matching import Fusion, fuse, fused, scalar, split_operand
from isobit.graph.graph import Graph, Node


def absorb_matmul_scale(graph: Graph) -> Graph:
    """Scalar factors around every MatMul of two activations move into its ``scale``."""
    return fuse(fuse(graph, _operand_scale), _result_scale)


def _is_product(graph: Graph, node: Node | None) -> bool:
    return node is not None and node.op == "MatMul" and all(name in graph.tensors for name in node.inputs)


def _factor(graph: Graph, node: Node | None) -> tuple[str, float] | None:
    """The tensor and factor of a Mul or Div by a scalar."""
    if node is None or node.op not in ("Mul", "Div"):
        return None
    if node.op == "Div":
        divisor = scalar(graph, node.input(1))
        source = node.input(0)
        return (source, 1 / divisor) if divisor and source is not None and source in graph.tensors else None
    return split_operand(graph, node)


def _operand_scale(graph: Graph, last: Node) -> Fusion | None:
    if not _is_product(graph, last):
        return None
    scale = float(last.attributes.get("scale", 1.0))
    inputs: list[str | None] = []
    covers: list[Node] = []
    for name in last.inputs:
        node = graph.producer(name or "")
        factor = _factor(graph, node)
        if factor is not None and node is not None and graph.sole_reader(name or "") is not None:
            inputs.append(factor[0])
            scale *= factor[1]
            covers.append(node)
        else:
            inputs.append(name)
    return fused(last, "MatMul", inputs, (*covers, last), scale=scale) if covers else None


def _result_scale(graph: Graph, last: Node) -> Fusion | None:
    factor = _factor(graph, last)
    product = graph.producer(factor[0]) if factor else None
    if factor is None or product is None or not _is_product(graph, product):
        return None
    scale = float(product.attributes.get("scale", 1.0)) * factor[1]
    return fused(last, "MatMul", product.inputs, (product, last), scale=scale)
