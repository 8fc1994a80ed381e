"""Tensors that take the same factors of their channels: where factors come in, which layers take them out again."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from isobit.graph.graph import Graph, Node, Use
from isobit.graph.ops import CURVES
from isobit.techniques.layers.layer_pairs import FLATTENING, HOMOGENEOUS, keeps_channels
from isobit.techniques.layers.weighted_layer import LAYERS, weight_obstacle

_SQUARE = "multiplies it by itself"

_AVERAGES = frozenset({"AveragePool", "GlobalAveragePool"})


@dataclass(frozen=True, eq=False)
class Step:
    """`target` follows from `source`; of the variance of noise that is independent by element, `share` arrives."""

    source: str
    target: str
    share: float


@dataclass(frozen=True, eq=False)
class Region:
    """The tensor `start` and what carries its factors on, up to the layers that take them out, or up to a curve.

    `entries` are the readers of `start` that belong to it, `whole` says that those are all. `readers` are the layers,
    each with the tensor that it reads. A region that ends at `curve` has no layers: factors are taken out before it.
    """

    start: str
    entries: tuple[Use, ...]
    whole: bool
    steps: tuple[Step, ...] = ()
    readers: tuple[tuple[Node, str], ...] = ()
    curve: Node | None = None

    @property
    def tensors(self) -> tuple[str, ...]:
        """All tensors that carry the factors, in the order of the graph's edges from `start`."""
        return self.start, *(step.target for step in self.steps)

    @property
    def layers(self) -> tuple[Node, ...]:
        """The layers that take the factors out."""
        return tuple(node for node, _ in self.readers)

    @property
    def name(self) -> str:
        """The start, in words."""
        return self.start


def find_region(graph: Graph, start: str) -> Region | str:
    """The region that begins at a tensor, or why there is none."""
    uses = graph.uses(start)
    if graph.tensors[start].channel_axis is None or graph.tensors[start].rank is None:
        read_by = ", ".join(dict.fromkeys(f"{use.node.name} ({use.node.op})" for use in uses))
        why = f"which of its axes holds channels is not known, and so not what {read_by} would do with their factors"
        return why if read_by else "nothing reads it"
    if len(uses) == 1 and start not in graph.output_tensors and uses[0].index == 0 and uses[0].node.op in CURVES:
        return Region(start, tuple(uses), True, curve=uses[0].node)
    entries, steps, readers, obstacles = [], [], [], []
    seen: set[str] = set()
    for use in uses:
        search = _Search(graph, seen)
        obstacle = search.follow(start, use)
        if obstacle:
            obstacles.append(obstacle)
            continue
        entries.append(use)
        steps.extend(search.steps)
        readers.extend(search.readers)
    whole = not obstacles and start not in graph.output_tensors
    region = Region(start, tuple(entries), whole, tuple(steps), tuple(readers))
    product = next((text for text in obstacles if text.endswith(_SQUARE)), None)
    if product is not None:
        return product
    if not readers:
        return obstacles[0] if obstacles else "nothing reads it"
    return region


@dataclass
class _Search:
    graph: Graph
    seen: set[str]  # what was reached from the start, by any of its readers
    steps: list[Step] = field(default_factory=list)
    readers: list[tuple[Node, str]] = field(default_factory=list)

    def follow(self, tensor: str, use: Use) -> str:
        """Take in a reader of `tensor` and all that follows; returns what stands in the way, or an empty text."""
        graph, node, axis = self.graph, use.node, self.graph.tensors[tensor].channel_axis or 0
        if node.op in LAYERS and use.index == 0:
            read = (graph.tensors[tensor].rank or 0) - 1 if node.op == "Linear" else 1
            obstacle = weight_obstacle(graph, node)
            if not obstacle and read == axis:
                self.readers.append((node, tensor))
            return obstacle or ("" if read == axis else f"{node.name} reads along another axis")
        passes = node.op == "Mul" or (
            use.index == 0 and (node.op in HOMOGENEOUS or (node.op in FLATTENING and keeps_channels(graph, node, axis)))
        )
        if not passes:
            return f"{node.name} ({node.op}) reads it, which does not pass factors on"
        result = node.outputs[0]
        if result in graph.output_tensors or graph.tensors[result].channel_axis != axis:
            return f"what {node.name} ({node.op}) makes of it leaves the model, or has its channels elsewhere"
        if node.op == "Mul" and graph.tensors[result].rank != graph.tensors[tensor].rank:
            return f"{node.name} ({node.op}) changes its axes"
        if result in self.seen:  # found twice, so both factors of the product carry the channels' factors
            return f"{node.name} {_SQUARE}"
        self.seen.add(result)
        self.steps.append(Step(tensor, result, _share(graph, node)))
        uses = graph.uses(result)
        obstacles: Iterator[str] = (self.follow(result, onward) for onward in uses)
        return next((text for text in obstacles if text), "" if uses else f"nothing reads {result}")


def _share(graph: Graph, node: Node) -> float:
    """How much of independent noise is left by a node: an average divides its variance."""
    if node.op not in _AVERAGES:
        return 1.0
    kernel = node.attributes.get("kernel_shape") or (graph.tensors[node.inputs[0] or ""].shape or ())[2:]
    return 1.0 / math.prod(size for size in kernel if isinstance(size, int))
