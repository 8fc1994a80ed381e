"""Adapters of low rank (LoRA): two layers and nothing between them, added to what another layer makes of their input.

Nothing but an adapter computes ``base(x) + scale * up(down(x))``: the sum could be one layer. So the graph tells,
whoever wrote it, and also where nothing trains any more. Source: Hu et al. 2021, "LoRA", arXiv 2106.09685, section 4.1.
"""

from __future__ import annotations

from dataclasses import dataclass

from isobit.graph.graph import Graph, Node

_LAYERS = frozenset({"Linear", "Conv"})


@dataclass(frozen=True, eq=False)
class Adapter:
    """What is trained and exchanged beside `base`: ``join = base(x) + up(down(x))``, with `scales` on the way."""

    base: Node
    down: Node
    up: Node
    scales: tuple[Node, ...]
    join: Node

    @property
    def nodes(self) -> tuple[Node, ...]:
        """All nodes that are not there without it."""
        return (self.down, self.up, *self.scales, self.join)

    @property
    def layers(self) -> tuple[Node, ...]:
        """Those of them that have weights."""
        return self.down, self.up


def find_adapters(graph: Graph) -> list[Adapter]:
    """All adapters in execution order of their first layers."""
    found = (_adapter_from(graph, node) for node in graph.nodes if node.op in _LAYERS)
    return [adapter for adapter in found if adapter is not None]


def adapter_of(graph: Graph, layer: Node) -> Adapter | None:
    """The adapter that a layer is a part of; its base is none."""
    if layer.op not in _LAYERS:
        return None
    adapter = _adapter_from(graph, layer)
    if adapter is not None:
        return adapter
    before = graph.producer(layer.inputs[0] or "")
    while before is not None and _is_scale(graph, before):
        before = graph.producer(_scaled(graph, before))
    adapter = None if before is None or before.op not in _LAYERS else _adapter_from(graph, before)
    return adapter if adapter is not None and adapter.up.name == layer.name else None


def _adapter_from(graph: Graph, down: Node) -> Adapter | None:
    """The adapter whose first layer this is."""
    if down.input(2) is not None or not _has_weight(graph, down):
        return None
    scales: list[Node] = []
    up = _behind(graph, down, scales)
    if up is None or up.op != down.op or not _has_weight(graph, up) or up.inputs[0] not in graph.tensors:
        return None
    join = _behind(graph, up, scales)
    if join is None or join.op != "Add":
        return None
    delta = _ends(graph, up)
    others = [name for name in join.inputs if name != delta and name in graph.tensors]
    base = _base(graph, others[0] or "", down) if len(others) == 1 else None
    if base is None or not _is_pointwise(graph, up) or not _is_low(graph, base, down):
        return None
    return Adapter(base, down, up, tuple(scales), join)


def _behind(graph: Graph, layer: Node, scales: list[Node]) -> Node | None:
    """The only reader of what a layer computes, behind products with one number, which go to `scales`."""
    tensor = layer.outputs[0]
    while True:
        use = graph.sole_reader(tensor)
        if use is None:
            return None
        if not _is_scale(graph, use.node):
            return use.node
        scales.append(use.node)
        tensor = use.node.outputs[0]


def _ends(graph: Graph, layer: Node) -> str:
    """The tensor behind a layer and its scales."""
    tensor = layer.outputs[0]
    while (use := graph.sole_reader(tensor)) is not None and _is_scale(graph, use.node):
        tensor = use.node.outputs[0]
    return tensor


def _is_scale(graph: Graph, node: Node) -> bool:
    return node.op == "Mul" and bool(_scaled(graph, node))


def _scaled(graph: Graph, scale: Node) -> str:
    """What a product multiplies with one number, else an empty text."""
    for name, factor in (scale.inputs, scale.inputs[::-1]) if len(scale.inputs) == 2 else ():
        value = graph.value(factor)
        if name in graph.tensors and value is not None and value.size == 1:
            return name or ""
    return ""


def _base(graph: Graph, tensor: str, down: Node) -> Node | None:
    """The layer that makes `tensor` of the input of `down`, other adapters' sums looked through."""
    node = graph.producer(tensor)
    if node is None:
        return None
    if node.op == down.op:
        return node if node.inputs[0] == down.inputs[0] and node is not down and _has_weight(graph, node) else None
    if node.op != "Add":
        return None
    found = (_base(graph, name, down) for name in node.inputs if name is not None)
    return next((base for base in found if base is not None), None)


def _has_weight(graph: Graph, layer: Node) -> bool:
    return layer.input(1) in graph.weights


def _is_pointwise(graph: Graph, up: Node) -> bool:
    return all(size == 1 for size in graph.weights[up.inputs[1] or ""].shape[2:])


def _is_low(graph: Graph, base: Node, down: Node) -> bool:
    """Whether the rank is below that of a convolution: two of them beside a third may well be meant as they are."""
    rank = graph.weights[down.inputs[1] or ""].shape[0]
    return base.op == "Linear" or rank < min(graph.weights[base.inputs[1] or ""].shape[:2])
