"""Factors by channel beside a curve: a Mul by constants that runs with it, so that nothing between is rounded.

A grid for all channels serves each of them best where their sizes are alike, and a Mul behind HardSwish or before it
makes them so (`isobit.techniques.balance_channels`). To round before the Mul would undo that, and to round the factors
would spoil them, so both run as one with the curve: in a runtime in float, on an accelerator in its table by channel.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from isobit.graph.graph import Graph, Node
from isobit.graph.ops import CURVES


@dataclass(frozen=True)
class ChannelFactors:
    """The names of Muls that run with a curve, and by tensor between the two the one that comes last."""

    nodes: frozenset[str] = frozenset()
    inner: Mapping[str, Node] = field(default_factory=dict)


def channel_factors(graph: Graph, quantized: Collection[str], apart: Collection[str]) -> ChannelFactors:
    """The Muls of `graph` by one constant a channel with a curve before or behind them; `apart` take no part.

    Those are nodes that a kernel of integers runs with the layer before them, or that the user excluded. A curve that
    is not among the `quantized` nodes has its result in float, for a Mul and for others that read it.
    """
    nodes, inner = set(), {}
    for node in graph.nodes:
        source = factored(graph, node)
        if source is None or node.name in apart:
            continue
        before = graph.producer(source)
        if before is not None and _is_curve(before, apart):
            if graph.sole_reader(source) is not None:
                inner[source] = node
                nodes.add(node.name)
            elif before.name not in quantized:
                nodes.add(node.name)
        use = graph.sole_reader(node.outputs[0])
        if use is not None and use.index == 0 and _is_curve(use.node, apart):
            inner[node.outputs[0]] = use.node
            nodes.add(node.name)
    return ChannelFactors(frozenset(nodes), inner)


def factored(graph: Graph, node: Node) -> str | None:
    """The tensor that a Mul multiplies by one constant a channel; None for any other node."""
    if node.op != "Mul" or len(node.inputs) != 2:
        return None
    tensors = [name for name in node.inputs if name in graph.tensors]
    factors = [graph.weights[name] for name in node.inputs if name is not None and name in graph.weights]
    info = graph.tensors[node.outputs[0]]
    if len(tensors) != 1 or len(factors) != 1 or info.shape is None or info.channel_axis is None:
        return None
    channels = info.shape[info.channel_axis]
    shape = (1,) * (len(info.shape) - len(factors[0].shape)) + factors[0].shape
    by_channel = tuple(channels if axis == info.channel_axis else 1 for axis in range(len(info.shape)))
    return tensors[0] if channels != 1 and shape == by_channel and factors[0].dtype == "float32" else None


def _is_curve(node: Node, apart: Collection[str]) -> bool:
    return node.op in CURVES and node.name not in apart
