"""The channel axis of every tensor: said by the ops around it, then carried through elementwise ops."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from isobit.graph.graph import Graph, Node
from isobit.graph.ops import BROADCAST, RECURRENT, UNARY

_SPATIAL = frozenset(
    "Conv ConvTranspose MaxPool AveragePool GlobalMaxPool GlobalAveragePool LpPool BatchNormalization "
    "InstanceNormalization GroupNormalization Resize DepthToSpace SpaceToDepth PRelu LRN".split()
)
_LAST = frozenset({"Linear", "MatMul", "LayerNormalization", "RMSNormalization", "Gather"}) | RECURRENT


def annotate_channels(graph: Graph) -> Graph:
    """Set ``channel_axis`` wherever it follows from the graph."""
    axes: dict[str, int] = {}
    for node in graph.nodes:
        _by_op(graph, node, axes)
    changed = True
    while changed:
        before = len(axes)
        for node in graph.nodes:
            _carry(graph, node, axes)
        for node in reversed(graph.nodes):
            _carry(graph, node, axes)
        changed = len(axes) != before
    tensors = {name: replace(info, channel_axis=axes.get(name)) for name, info in graph.tensors.items()}
    return replace(graph, tensors=tensors)


def _by_op(graph: Graph, node: Node, axes: dict[str, int]) -> None:
    last = node.op in _LAST
    if not last and node.op not in _SPATIAL:
        return
    for name in (node.input(0), node.outputs[0]):
        rank = graph.tensors[name].rank if name is not None and name in graph.tensors else None
        if name is None or rank is None or rank < 2:
            continue
        if last and (node.op != "Gather" or name == node.outputs[0]):
            inner = node.attributes.get("axes", ())  # of a norm over one axis that is not the last
            axes.setdefault(name, rank + (int(inner[0]) if len(inner) == 1 else -1))
        elif not last:
            axes.setdefault(name, 1)


def _carry(graph: Graph, node: Node, axes: dict[str, int]) -> None:
    if node.op not in UNARY and node.op not in BROADCAST and node.op != "Concat":
        return
    names = [name for name in (*node.inputs, *node.outputs[:1]) if name in graph.tensors]
    ranks: Mapping[str, int | None] = {name: graph.tensors[name].rank for name in names if name is not None}
    axis_of_rank = {(ranks[name], axes[name]) for name in ranks if name in axes}
    for name, rank in ranks.items():
        axis = next((a for r, a in sorted(axis_of_rank, key=str) if r == rank), None)
        if name not in axes and axis is not None:
            axes[name] = axis
