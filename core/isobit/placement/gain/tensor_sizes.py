"""How many elements the tensors of a graph have in one sample, also where the model leaves sizes open."""

from __future__ import annotations

from math import prod

from isobit.graph.graph import Graph, Node

#: What a size that the model leaves open counts as: pictures and lines of text are about this large, and larger.
OPEN_SIZE = 64

_STRIDING = frozenset({"Conv", "MaxPool", "AveragePool"})


class TensorSizes:
    """Elements of tensors in one sample; a stride divides the open sizes as it divides those that are known."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._open: dict[str, float] = {}
        for name in graph.inputs:
            shape = graph.tensors[name].shape if name in graph.tensors else None
            self._open[name] = float(OPEN_SIZE ** sum(not isinstance(size, int) for size in (shape or ())[1:]))
        for node in graph.nodes:
            scale = next((self._open[name] for name in node.inputs if name in self._open), 1.0)
            self._open.update(dict.fromkeys(node.outputs, max(scale / _strides(node), 1.0)))

    def elements(self, name: str) -> float | None:
        """Elements of a tensor, the batch left out; None where its rank or its channels are not known."""
        info = self._graph.tensors.get(name)
        if info is None or info.shape is None:
            return None
        sizes = info.shape[1:]
        if info.channel_axis is not None and not isinstance(info.shape[info.channel_axis], int):
            return None
        known = prod(size for size in sizes if isinstance(size, int))
        return known * (self._open[name] if any(not isinstance(size, int) for size in sizes) else 1.0)


def _strides(node: Node) -> int:
    return prod(node.attributes.get("strides") or ()) if node.op in _STRIDING else 1
