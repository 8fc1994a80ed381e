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
            self._open[name] = float(OPEN_SIZE ** (self._open_sizes(name) or 0))
        for node in graph.nodes:
            scale = next((self._open[name] for name in node.inputs if name in self._open), 1.0)
            for name in node.outputs:
                self._open[name] = max(scale / self._strides(node), 1.0) if self._open_sizes(name) != 0 else 1.0

    def elements(self, name: str) -> float | None:
        """Elements of a tensor, the batch left out; None where its rank or its channels are not known."""
        info = self._graph.tensors.get(name)
        if info is None or info.shape is None:
            return None
        sizes = info.shape[1:]
        if info.channel_axis is not None and not isinstance(info.shape[info.channel_axis], int):
            return None
        return prod(size for size in sizes if isinstance(size, int)) * self._open[name]

    def _open_sizes(self, name: str) -> int | None:
        """How many sizes of a tensor are open beside the batch; None where its rank is not known."""
        info = self._graph.tensors.get(name)
        if info is None or info.shape is None:
            return None
        return sum(not isinstance(size, int) for size in info.shape[1:])

    def _strides(self, node: Node) -> int:
        """By how much a node divides open sizes: its strides along axes whose sizes are open."""
        strides = tuple(node.attributes.get("strides") or ()) if node.op in _STRIDING else ()
        info = self._graph.tensors.get(node.outputs[0])
        sizes = (None,) * len(strides) if info is None or info.shape is None else info.shape[2:]
        return prod(stride for stride, size in zip(strides, sizes, strict=False) if not isinstance(size, int))
