"""One number a channel, spread over space: the bias of a convolution, and batch normalisation with fixed statistics."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from isobit.canonical.matching import Fusion, fuse, fused, producer_of, scalar
from isobit.canonical.products import Product
from isobit.canonical.weight_views import Weights
from isobit.graph.graph import Graph, Node
from isobit.graph.layout import View

#: Operands that are vectors of one number a channel.
_VECTORS = {"Conv": (2,), "ConvTranspose": (2,), "BatchNormalization": (1, 2, 3, 4)}

Sizes = tuple[int, ...]


def fuse_per_channel(graph: Graph) -> Graph:
    """BatchNormalization for its elementary steps; one constant a channel, added to a convolution, is its bias."""
    graph = fuse(fuse(graph, _batch_norm), _bias)
    weights = Weights(graph.weights)
    return graph.with_nodes(tuple(_with_vectors(node, weights) for node in graph.nodes), weights=weights)


def _with_vectors(node: Node, weights: Weights) -> Node:
    inputs = list(node.inputs)
    for index in _VECTORS.get(node.op, ()):
        name = node.input(index)
        shape = weights[name].shape if name is not None and name in weights else ()
        if name is not None and len(shape) > 1:
            inputs[index] = weights.view(name, (View((max(shape),), shape),))
    return replace(node, inputs=tuple(inputs))


def _spread(graph: Graph, name: str) -> Sizes | None:
    """The shape in which one number a channel meets the tensor `name`, leading ones left out."""
    shape = graph.tensors[name].shape
    if shape is None or len(shape) < 2 or not isinstance(shape[1], int):
        return None
    return (shape[1], *(1,) * (len(shape) - 2))


def _without_leading_ones(shape: tuple[object, ...]) -> tuple[object, ...]:
    return shape[next((axis for axis, n in enumerate(shape) if n != 1), len(shape)) :]


def _is(graph: Graph, name: str | None, shape: Sizes) -> bool:
    """Whether a constant has this shape, leading ones left out."""
    return name is not None and name in graph.weights and _without_leading_ones(graph.weights[name].shape) == shape


def _bias(graph: Graph, last: Node) -> Fusion | None:
    spread = _spread(graph, last.outputs[0]) if last.op == "Add" else None
    for tensor, bias in (last.inputs, last.inputs[::-1]) if spread else ():
        layer = graph.producer(tensor or "")
        if layer is None or layer.op not in ("Conv", "ConvTranspose") or len(layer.inputs) != 2:
            continue
        if spread is not None and _is(graph, bias, spread):
            return fused(last, layer.op, (*layer.inputs, bias), (layer, last), **layer.attributes)
    return None


@dataclass
class _Factors:
    """The factors of a product and the shape in which each meets its neighbours, and the nodes of the product."""

    over: list[tuple[str, Sizes]] = field(default_factory=list)
    under: list[tuple[str, Sizes]] = field(default_factory=list)
    constant: float = 1.0
    nodes: list[Node] = field(default_factory=list)

    def take(self, graph: Graph, name: str, spread: Sizes, *, inverse: bool = False) -> None:
        """Multiply by `name`, looking through what spreads a computed vector over space."""
        product = Product.of(graph, name)
        self.constant *= 1 / product.constant if inverse else product.constant
        self.nodes += product.nodes
        for names, below in ((product.over, inverse), (product.under, not inverse)):
            for factor in names:
                view = producer_of(graph, factor, "Reshape")
                if view is not None and len(spread) > 1 and _spreads(graph, view, spread):
                    self.nodes.append(view)
                    self.take(graph, view.inputs[0] or "", spread[:1], inverse=below)
                else:
                    (self.under if below else self.over).append((factor, spread))


def _spreads(graph: Graph, view: Node, spread: Sizes) -> bool:
    vector, result = graph.tensors.get(view.inputs[0] or ""), graph.tensors[view.outputs[0]]
    if vector is None or vector.shape is None or result.shape is None:
        return False
    return vector.shape == spread[:1] and _without_leading_ones(result.shape) == spread


def _batch_norm(graph: Graph, last: Node) -> Fusion | None:
    """``(x - mean) / sqrt(variance + eps) * scale + shift``, the factors in any order."""
    spread = _spread(graph, last.outputs[0]) if last.op == "Add" else None
    for tensor, shift in (last.inputs, last.inputs[::-1]) if spread else ():
        if spread is None or tensor not in graph.tensors or tensor is None or not _is(graph, shift, spread):
            continue
        factors = _Factors()
        factors.take(graph, tensor, spread)
        if len(factors.over) != 2 or len(factors.under) != 1 or factors.constant != 1:
            continue
        for (scale, shape), (name, _) in (factors.over, factors.over[::-1]):
            difference = producer_of(graph, name, "Sub")
            deviation = _deviation(graph, *factors.under[0])
            if difference is None or deviation is None or not _is(graph, scale, shape):
                continue
            x, mean = difference.inputs
            if x in graph.tensors and _is(graph, mean, spread):
                variance, epsilon, covers = deviation
                inputs = (x, scale, shift, mean, variance)
                covered = (difference, *covers, *factors.nodes, last)
                return fused(last, "BatchNormalization", inputs, covered, epsilon=epsilon)
    return None


def _deviation(graph: Graph, name: str, spread: Sizes) -> tuple[str, float, tuple[Node, ...]] | None:
    """``variance`` and ``eps`` where `name` is ``sqrt(variance + eps)``, and the nodes of that."""
    root = producer_of(graph, name, "Sqrt")
    add = producer_of(graph, root.input(0), "Add") if root else None
    for variance, number in (add.inputs, add.inputs[::-1]) if add else ():
        epsilon = scalar(graph, number)
        if root is not None and add is not None and variance and epsilon is not None and _is(graph, variance, spread):
            return variance, epsilon, (add, root)
    return None
