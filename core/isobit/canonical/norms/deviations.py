"""Means, variances and their roots, in every way that exporters write them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from isobit.canonical.matching import close, producer_of, split_operand
from isobit.canonical.products import Product
from isobit.graph.graph import Graph, Node, Shape

_VIEWS = frozenset({"Unsqueeze", "Reshape", "Expand"})

#: Counted from the end.
Axes = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Moment:
    """A moment of `x` over `axes`, which stay as axes of size 1 where `is_kept`, and the nodes that compute it."""

    x: str
    axes: Axes
    nodes: tuple[Node, ...]
    is_kept: bool = True


@dataclass(frozen=True, eq=False)
class Normalized:
    """``x`` over the root of its variance (or mean square) and `epsilon`, times the factors that are left in `rest`."""

    x: str
    axes: Axes
    epsilon: float
    is_centered: bool
    rest: tuple[str, ...]
    nodes: tuple[Node, ...]


@dataclass(frozen=True, eq=False)
class Inverse:
    """A product with one over the root of a moment and `epsilon`: the other factors, and the nodes of the root."""

    moment: Moment
    epsilon: float
    others: tuple[str, ...]
    nodes: tuple[Node, ...]


def normalized(graph: Graph, product: Product, *, is_centered: bool) -> Normalized | None:
    """What a product normalises, by the standard deviation where `is_centered`, else by the root mean square."""
    for inverse in inverses(graph, product, is_centered=is_centered):
        moment = inverse.moment
        for name in dict.fromkeys(inverse.others):
            difference = centered(graph, name) if is_centered else Moment(name, moment.axes, ())
            if difference is None or (difference.x, difference.axes) != (moment.x, moment.axes):
                continue
            rest = list(inverse.others)
            rest.remove(name)
            nodes = (*difference.nodes, *inverse.nodes, *product.nodes)
            return Normalized(moment.x, moment.axes, inverse.epsilon, is_centered, tuple(rest), nodes)
    return None


def inverses(graph: Graph, product: Product, *, is_centered: bool) -> Iterator[Inverse]:
    """Each way to see a product as one over a root, of a variance where `is_centered`, else of a mean square."""
    if product.constant != 1:
        return
    for spread, others, root_nodes in _divided_by_root(graph, product):
        power, epsilon, add = _without_epsilon(graph, spread)
        moment = variance(graph, power) if is_centered else mean_square(graph, power)
        if moment is not None and moment.is_kept:
            yield Inverse(moment, epsilon, others, (*moment.nodes, *add, *root_nodes))


def _divided_by_root(graph: Graph, product: Product) -> list[tuple[str, tuple[str, ...], tuple[Node, ...]]]:
    """What a product divides by the root of, the other factors, and the nodes of the root."""
    found: list[tuple[str, tuple[str, ...], tuple[Node, ...]]] = []
    if len(product.under) == 1:
        root = _power(graph, product.under[0], 0.5)
        return [(root[0], tuple(product.over), root[1])] if root is not None else []
    for index, name in enumerate(product.over if not product.under else ()):
        others = (*product.over[:index], *product.over[index + 1 :])
        inverse = _power(graph, name, -0.5)
        if inverse is not None:
            found.append((inverse[0], others, inverse[1]))
    return found


def _power(graph: Graph, name: str, exponent: float) -> tuple[str, tuple[Node, ...]] | None:
    """``v`` where `name` is ``v`` to the power of 0.5 or -0.5."""
    node = graph.producer(name)
    operands = split_operand(graph, node) if node is not None and node.op == "Pow" else None
    if node is not None and operands is not None:
        return (operands[0], (node,)) if operands[1] == exponent and operands[0] == node.input(0) else None
    if node is None or node.op != "Sqrt" or node.input(0) is None:
        return None
    if exponent > 0:
        return node.input(0) or "", (node,)
    inverse = Product.of(graph, node.input(0) or "")
    if inverse.over or len(inverse.under) != 1 or inverse.constant != 1:
        return None
    return inverse.under[0], (*inverse.nodes, node)


def _without_epsilon(graph: Graph, name: str) -> tuple[str, float, tuple[Node, ...]]:
    """``v``, ``eps`` and the addition, where `name` is ``v + eps``; ``eps`` may be missing."""
    add = producer_of(graph, name, "Add")
    operands = split_operand(graph, add) if add is not None else None
    return (*operands, (add,)) if operands is not None and add is not None else (name, 0.0, ())


def centered(graph: Graph, name: str | None) -> Moment | None:
    """``x`` where `name` is ``x - mean(x)``."""
    difference = producer_of(graph, name, "Sub")
    mean = mean_of(graph, difference.input(1)) if difference is not None else None
    if difference is None or mean is None or not mean.is_kept or mean.x != difference.input(0):
        return None
    return Moment(mean.x, mean.axes, (*mean.nodes, difference))


def variance(graph: Graph, name: str) -> Moment | None:
    """``x`` where `name` is its variance: ``mean((x - mean(x))²)`` or ``mean(x²) - mean(x)²``, kept from zero down."""
    square = mean_square(graph, name)
    inner = centered(graph, square.x) if square is not None else None
    if square is not None and inner is not None:
        nodes = (*inner.nodes, *square.nodes)
        return Moment(inner.x, inner.axes, nodes, square.is_kept) if inner.axes == square.axes else None
    view = graph.producer(name)
    if view is not None and view.op in _VIEWS:
        return _broadcast(graph, view, variance)
    positive = _bounded_by_zero(graph, name)
    bounded = split_operand(graph, positive) if positive is not None and positive.op == "Max" else None
    inside = bounded[0] if bounded is not None else positive.input(0) if positive is not None else name
    difference = producer_of(graph, inside, "Sub")
    of_square = mean_square(graph, difference.input(0) or "") if difference is not None else None
    squared = graph.producer(difference.input(1) or "") if difference is not None else None
    mean = mean_of(graph, squared_operand(graph, squared)) if squared is not None else None
    if difference is None or of_square is None or squared is None or mean is None:
        return None
    if (of_square.x, of_square.axes, of_square.is_kept) != (mean.x, mean.axes, mean.is_kept):
        return None
    computed = (*of_square.nodes, *mean.nodes, squared, difference, positive)
    return Moment(mean.x, mean.axes, tuple(node for node in computed if node is not None), mean.is_kept)


def _bounded_by_zero(graph: Graph, name: str) -> Node | None:
    node = graph.producer(name)
    if node is None or node.op not in ("Relu", "Max", "Clip"):
        return None
    if node.op == "Clip":
        return node if node.attributes.get("min") == 0 and node.attributes.get("max") is None else None
    operands = split_operand(graph, node) if node.op == "Max" else None
    is_relu = node.op == "Relu" or (operands is not None and operands[1] == 0.0)
    return node if is_relu else None


def mean_square(graph: Graph, name: str | None) -> Moment | None:
    """``x`` where `name` is ``mean(x²)``."""
    mean = mean_of(graph, name)
    square = graph.producer(mean.x) if mean is not None else None
    operand = squared_operand(graph, square) if square is not None else None
    if mean is None or square is None or operand is None:
        return None
    return Moment(operand, mean.axes, (square, *mean.nodes), mean.is_kept)


def squared_operand(graph: Graph, node: Node) -> str | None:
    """What `node` is the square of."""
    if node.op == "Mul" and node.inputs[0] == node.inputs[1]:
        return node.inputs[0]
    operands = split_operand(graph, node) if node.op == "Pow" else None
    return operands[0] if operands and operands[1] == 2.0 and operands[0] == node.input(0) else None


def mean_of(graph: Graph, name: str | None) -> Moment | None:
    """``x`` where `name` is its mean over some axes."""
    node = graph.producer(name) if name is not None else None
    if node is None:
        return None
    if node.op in _VIEWS:
        return _broadcast(graph, node, mean_of)
    if node.op in ("Div", "Mul"):
        return _sum_over_terms(graph, node)
    axes = _reduced_axes(graph, node, "ReduceMean")
    x = node.input(0)
    return Moment(x, axes, (node,), _keeps_axes(node)) if axes is not None and x is not None else None


def _sum_over_terms(graph: Graph, node: Node) -> Moment | None:
    operands = split_operand(graph, node)
    total = graph.producer(operands[0]) if operands is not None else None
    axes = _reduced_axes(graph, total, "ReduceSum") if total is not None else None
    shape = _shape(graph, total.input(0)) if total is not None else None
    if operands is None or total is None or axes is None or shape is None:
        return None
    terms = 1
    for axis in axes:
        size = shape[axis]
        if not isinstance(size, int):
            return None
        terms *= size
    is_mean = operands[1] == terms if node.op == "Div" else close(operands[1] * terms, 1.0)
    if not is_mean or (node.op == "Div" and node.input(0) != operands[0]):
        return None
    return Moment(total.input(0) or "", axes, (total, node), _keeps_axes(total))


def _broadcast(graph: Graph, view: Node, inner: Callable[[Graph, str], Moment | None]) -> Moment | None:
    """A moment whose axes a reshape puts back, of size 1, or that is repeated to the shape of what it is of."""
    moment = inner(graph, view.input(0) or "")
    if moment is None:
        return None
    before, after = _shape(graph, moment.x), _shape(graph, view.outputs[0])
    if before is None or after is None or len(before) != len(after):
        return None
    rank = len(before)
    kept = tuple(1 if axis - rank in moment.axes else size for axis, size in enumerate(before))
    if view.op == "Expand":
        fits = all(
            now in (1, size) or (_is_open(now) and _is_open(size)) for now, size in zip(after, before, strict=True)
        )
        return replace(moment, nodes=(*moment.nodes, view)) if moment.is_kept and fits else None
    return replace(moment, nodes=(*moment.nodes, view), is_kept=True) if _may_be(kept, after) else None


def _may_be(kept: Shape, after: Shape) -> bool:
    """Whether shapes of as many elements are the same: one open size may have another name."""
    differing = [(one, other) for one, other in zip(kept, after, strict=True) if one != other]
    return not differing or (len(differing) == 1 and all(map(_is_open, differing[0])))


def _is_open(size: object) -> bool:
    return not isinstance(size, int)


def _reduced_axes(graph: Graph, node: Node, op: str) -> Axes | None:
    """The axes of a reduction, counted from the end; a global average pool is a mean over space."""
    shape = _shape(graph, node.input(0))
    if node.op == "GlobalAveragePool" and op == "ReduceMean" and shape is not None:
        return tuple(range(2 - len(shape), 0)) or None
    if node.op != op or len([name for name in node.inputs if name is not None]) != 1:
        return None
    axes = node.attributes.get("axes")
    if axes is None or (shape is None and max(axes) >= 0):
        return None
    return tuple(sorted(axis if axis < 0 else axis - len(shape or ()) for axis in axes))


def _keeps_axes(node: Node) -> bool:
    return bool(node.attributes.get("keepdims", 1))


def _shape(graph: Graph, name: str | None) -> Shape | None:
    return graph.tensors[name].shape if name is not None and name in graph.tensors else None
