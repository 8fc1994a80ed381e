"""A captured program: containers with the user's parameters, the float graph over them, and how it is called."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from torch import fx, nn

from isobit_torch.program.shapes import InputInfo, Symbols
from isobit_torch.program.signature import Signature


@dataclass(frozen=True, eq=False)
class Program:
    """`graph` is the float graph, without quantizers; its constants are parameters and buffers of `root`."""

    root: nn.Module
    graph: fx.Graph
    signature: Signature
    inputs: tuple[InputInfo, ...]
    symbols: Symbols
    notes: tuple[str, ...] = ()


def copy_graph(graph: fx.Graph) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    """A copy of a graph, and its nodes by those of the original."""
    new_graph = fx.Graph()
    pairs: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        new_node = new_graph.node_copy(node, lambda n: pairs[n])
        new_node.meta = copy.copy(node.meta)
        pairs[node] = new_node
    return new_graph, pairs
