"""Adapters of low rank (LoRA): two layers and nothing between them, added to what another layer makes of their input.

Nothing but an adapter computes ``base(x) + scale * up(down(x))``: the sum could be one layer. So the graph tells,
whoever wrote it, and also where nothing trains any more. Source: Hu et al. 2021, "LoRA", arXiv 2106.09685, section 4.1.
"""

from __future__ import annotations

from dataclasses import dataclass

from isobit.graph.graph import Graph, Node

#: What follows a look-up in a table of few columns.
_OP_OF_UP = {"Gather": "Linear"}
#: Layers, and a look-up in a table (an embedding), by where the weight and what it meets are among the operands.
_OPERANDS = {"Linear": (1, 0), "Conv": (1, 0), "Gather": (0, 1)}


@dataclass(frozen=True, eq=False)
class Adapter:
    """What is trained and exchanged beside `base`: ``join = base(x) + up(down(x))``, with `scales` on the way.

    `views` are reshapes on it, where the heads of an attention have axes of their own.
    """

    base: Node
    down: Node
    up: Node
    scales: tuple[Node, ...]
    join: Node
    views: tuple[Node, ...] = ()

    @property
    def nodes(self) -> tuple[Node, ...]:
        """All nodes that are not there without it."""
        return (self.down, self.up, *self.scales, *self.views, self.join)

    @property
    def layers(self) -> tuple[Node, ...]:
        """Those of them that have weights."""
        return self.down, self.up

    @property
    def weights(self) -> tuple[str, str]:
        """The weights of these."""
        return _weight(self.down), _weight(self.up)


def find_adapters(graph: Graph) -> list[Adapter]:
    """All adapters in execution order of their first layers."""
    found = (_adapter_from(graph, node) for node in graph.nodes if node.op in _OPERANDS)
    return [adapter for adapter in found if adapter is not None]


def adapter_of(graph: Graph, layer: Node) -> Adapter | None:
    """The adapter that a layer is a part of; its base is none."""
    if layer.op not in _OPERANDS:
        return None
    adapter = _adapter_from(graph, layer)
    if adapter is not None:
        return adapter
    before = graph.producer(layer.inputs[0] or "")
    while before is not None and (_is_scale(graph, before) or before.op == "Reshape"):
        before = graph.producer(before.inputs[0] or "" if before.op == "Reshape" else _scaled(graph, before))
    adapter = None if before is None or before.op not in _OPERANDS else _adapter_from(graph, before)
    return adapter if adapter is not None and adapter.up.name == layer.name else None


def _adapter_from(graph: Graph, down: Node) -> Adapter | None:
    """The adapter whose first layer this is."""
    if (down.op != "Gather" and down.input(2) is not None) or not _has_weight(graph, down):
        return None
    passed: list[Node] = []
    up = _behind(graph, down, passed)
    if up is None or up.op != _OP_OF_UP.get(down.op, down.op) or not _has_weight(graph, up):
        return None
    if up.inputs[0] not in graph.tensors:
        return None
    before = len(passed)
    join = _behind(graph, up, passed)
    if join is None or join.op != "Add":
        return None
    delta = passed[-1].outputs[0] if len(passed) > before else up.outputs[0]
    others = [name for name in join.inputs if name != delta and name in graph.tensors]
    base = _base(graph, others[0] or "", down) if len(others) == 1 else None
    if base is None or not _is_pointwise(graph, up) or not _is_low(graph, base, down):
        return None
    views = tuple(node for node in passed if node.op == "Reshape")
    return Adapter(base, down, up, tuple(node for node in passed if node not in views), join, views)


def _behind(graph: Graph, layer: Node, passed: list[Node]) -> Node | None:
    """The only reader of what a layer computes, behind products with one number and reshapes, which are `passed`."""
    tensor = layer.outputs[0]
    while True:
        use = graph.sole_reader(tensor)
        if use is None:
            return None
        if not _is_scale(graph, use.node) and use.node.op != "Reshape":
            return use.node
        passed.append(use.node)
        tensor = use.node.outputs[0]


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
    """The layer that makes `tensor` of the input of `down`, other adapters' sums looked through.

    A sum that others read as well is a residual: nothing before it is looked at.
    """
    waiting = [tensor]
    while waiting:
        node = graph.producer(waiting.pop())
        if node is None:
            continue
        if node.op == down.op:
            if node is not down and _source(graph, node) == _source(graph, down) and _has_weight(graph, node):
                return node
        elif node.op == "Reshape" or (node.op == "Add" and graph.sole_reader(node.outputs[0]) is not None):
            waiting += [name for name in node.inputs[: 1 if node.op == "Reshape" else None] if name is not None]
    return None


def _weight(layer: Node) -> str:
    return layer.input(_OPERANDS[layer.op][0]) or ""


def _source(graph: Graph, layer: Node) -> str | None:
    """What a layer reads, before it was reshaped."""
    name = layer.input(_OPERANDS[layer.op][1])
    while name is not None and (node := graph.producer(name)) is not None and node.op == "Reshape":
        name = node.inputs[0]
    return name


def _has_weight(graph: Graph, layer: Node) -> bool:
    weight = graph.weights.get(_weight(layer))
    return weight is not None and (layer.op != "Gather" or (weight.is_float and len(weight.shape) == 2))


def _is_pointwise(graph: Graph, up: Node) -> bool:
    return all(size == 1 for size in graph.weights[_weight(up)].shape[2:])


def _is_low(graph: Graph, base: Node, down: Node) -> bool:
    """Whether the rank is below that of a convolution or table: two beside a third may well be meant as they are."""
    rows, shape = graph.weights[_weight(down)].shape, graph.weights[_weight(base)].shape
    if base.op == "Gather":
        return rows[0] == shape[0] and rows[1] < shape[1]
    return base.op == "Linear" or rows[0] < min(shape[:2])
