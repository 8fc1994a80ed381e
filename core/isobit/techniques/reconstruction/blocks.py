"""Blocks: parts of a graph between tensors through which everything goes, each with some layers to round together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from isobit.errors import ModelError
from isobit.graph.between import between
from isobit.graph.boundaries import alive, read_from_outside
from isobit.graph.graph import Graph, Node
from isobit.graph.ops import WEIGHTED
from isobit.techniques.rounding.layers import Layer


@dataclass(frozen=True, eq=False)
class Block:
    """A part of a graph, as a graph, and the layers whose weights are read in it and nowhere else."""

    part: Graph
    layers: tuple[Layer, ...]

    @property
    def name(self) -> str:
        """The names of the first and the last layer."""
        first, last = self.layers[0].name, self.layers[-1].name
        return first if first == last else f"{first} to {last}"


def find_blocks(graph: Graph, layers: Sequence[Layer], most: int) -> tuple[list[Block], dict[str, str]]:
    """The blocks in execution order, and the weights that are in none, with the reason.

    The graph is cut wherever one tensor alone is alive, of those that any weight has had a part in: masks and positions
    may go beside it. What lies between two cuts stays together, a residual block or the half of a transformer layer;
    where that is one layer, up to `most` of them in a row are one block. What follows a layer up to the next belongs to
    it.
    """
    blocks: list[Block] = []
    left: dict[str, str] = {}
    waiting = {layer.weight: layer for layer in layers}
    for nodes, wanted in _joined(graph, most):
        names = {node.name for node in nodes}
        inside = [layer for layer in waiting.values() if layer.readers.keys() <= names]
        if not inside or not wanted:
            continue
        try:
            part = between(graph, read_from_outside(graph, nodes), wanted)
        except ModelError as error:
            left |= dict.fromkeys((layer.weight for layer in inside), str(error))
            continue
        names = {node.name for node in part.nodes}
        inside = [layer for layer in inside if layer.readers.keys() <= names]
        for layer in inside:
            del waiting[layer.weight]
        if inside:
            blocks.append(Block(part, tuple(inside)))
    why = "no float tensor behind it shows its error alone, or its readers are in several blocks"
    return blocks, {**dict.fromkeys(waiting, why), **left}


def _joined(graph: Graph, most: int) -> Iterator[tuple[list[Node], list[str]]]:
    """The nodes of each block and the tensors that leave it."""
    nodes: list[Node] = []
    ends: list[str] = []
    count = 0
    for stretch, wanted in _stretches(graph):
        layers = sum(node.op in WEIGHTED and node.input(1) in graph.weights for node in stretch)
        closes = layers and count and (layers > 1 or count >= most)
        if closes:
            yield nodes, ends
            nodes, count = [], 0
        # a residual block stays alone, so it counts as full
        count += most if layers > 1 else layers
        nodes, ends = [*nodes, *stretch], wanted
    if nodes:
        yield nodes, ends


def _stretches(graph: Graph) -> Iterator[tuple[list[Node], list[str]]]:
    """The nodes between two cuts, and the float tensors alive at the second."""
    weighed = _weighed(graph)
    nodes: list[Node] = []
    for node, names in zip(graph.nodes, alive(graph)[1:], strict=True):
        nodes.append(node)
        ends = weighed & names
        if (len(ends) == 1 and graph.is_float(next(iter(ends)))) or node is graph.nodes[-1]:
            yield nodes, sorted(name for name in ends if graph.is_float(name))
            nodes = []


def _weighed(graph: Graph) -> set[str]:
    """The tensors that any constant of two axes or more has had a part in."""
    weighed: set[str] = set()
    for node in graph.nodes:
        for name in node.inputs:
            info = graph.weights.get(name or "")
            if name in weighed or (info is not None and info.is_float and len(info.shape) > 1):
                weighed.update(node.outputs)
    return weighed
