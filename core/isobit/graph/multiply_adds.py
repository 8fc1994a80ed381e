"""Multiply-adds of a layer, from the shapes that a graph knows."""

from __future__ import annotations

from math import prod

from isobit.graph.graph import Graph, Node
from isobit.graph.ops import RECURRENT, WEIGHTED


def multiply_adds(graph: Graph, node: Node, *, of_one: bool = False) -> int | None:
    """Multiply-adds of a node, open sizes as 1: 0 for ops that are no products, None where shapes are not known.

    With `of_one` the first axis of data counts as 1 where it is a batch, whatever size a file gives it: everywhere but
    in recurrent layers, whose first axis is time.
    """
    if node.op not in WEIGHTED | RECURRENT:
        return 0
    data, result = sizes_of(graph, node.input(0)), sizes_of(graph, node.outputs[0])
    weight = sizes_of(graph, node.input(1))
    if node.op in RECURRENT:
        recurrent = sizes_of(graph, node.input(2))
        if data is None or weight is None or recurrent is None:
            return None
        return prod(data[:-1]) * (prod(weight) + prod(recurrent))
    if of_one:
        data, result = (None if sizes is None else [1, *sizes[1:]] for sizes in (data, result))
    if node.op == "ConvTranspose":  # each element of the input meets the kernels of its channel
        return None if data is None or weight is None else data[0] * prod(data[2:]) * prod(weight)
    if result is None:
        return None
    if node.op == "Conv":
        return None if weight is None else prod(result) * prod(weight[1:])
    inner = data or weight
    if not inner:
        return None
    # The canonical weight of Linear and of a constant MatMul has the inner axis last, as its input has.
    return prod(result) * inner[-1]


def sizes_of(graph: Graph, name: str | None) -> list[int] | None:
    """The shape of a tensor or constant, open sizes as 1; None where it is not known."""
    if name is not None and name in graph.weights:
        return list(graph.weights[name].shape)
    info = graph.tensors.get(name or "")
    if info is None or info.shape is None:
        return None
    return [size if isinstance(size, int) else 1 for size in info.shape]
