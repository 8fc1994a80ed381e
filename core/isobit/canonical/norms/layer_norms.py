"""Layer norm and root mean square norm, over any axes, with or without scale and shift."""

from __future__ import annotations

from functools import partial

from isobit.canonical.matching import Fusion, fused, producer_of
from isobit.canonical.norms.affine import form
from isobit.canonical.norms.deviations import Normalized, inverses, mean_of, normalized
from isobit.canonical.products import Product
from isobit.graph.graph import Graph, Node


def _shifted(graph: Graph, last: Node) -> Fusion | None:
    """``(x - mean(x)) / sqrt(var(x) + eps) * scale + shift``, the factors in any order."""
    if last.op != "Add" or len(last.inputs) != 2:
        return None
    for tensor, shift in (last.inputs, last.inputs[::-1]):
        if tensor is None or shift not in graph.weights or shift is None:
            continue
        norm = normalized(graph, Product.of(graph, tensor), is_centered=True)
        if norm is not None and len(norm.rest) == 1 and norm.rest[0] in graph.weights:
            return _fused(graph, norm, last, (norm.rest[0], shift))
    return None


def _scaled(graph: Graph, last: Node, *, is_centered: bool) -> Fusion | None:
    """A norm with a scale and no shift; that of an RMS norm is a constant or, as in Gemma, computed from one."""
    if last.op not in ("Mul", "Div"):
        return None
    norm = normalized(graph, Product.ending_at(graph, last), is_centered=is_centered)
    if norm is None or len(norm.rest) != 1:
        return None
    scale = norm.rest[0]
    if scale in graph.weights:
        return _fused(graph, norm, last, (scale,))
    if is_centered or graph.tensors[scale].rank != 1 or norm.axes != (-1,):
        return None
    return fused(last, "RMSNormalization", (norm.x, scale), (*norm.nodes, last), axis=-1, epsilon=norm.epsilon)


def _bare(graph: Graph, last: Node, *, is_centered: bool) -> Fusion | None:
    """A norm alone; what is multiplied by it and added to it stays beside it."""
    if last.op not in ("Mul", "Div"):
        return None
    norm = normalized(graph, Product.ending_at(graph, last), is_centered=is_centered)
    return _fused(graph, norm, last, ()) if norm is not None and not norm.rest else None


def _moved(graph: Graph, last: Node) -> Fusion | None:
    """TensorFlow's ``x * inverse + (shift - mean(x) * inverse)`` with ``inverse = scale / sqrt(var(x) + eps)``."""
    if last.op not in ("Add", "Sub") or len(last.inputs) != 2:
        return None
    pairs = (last.inputs, last.inputs[::-1]) if last.op == "Add" else (last.inputs,)
    for first, second in pairs:
        product, offset = producer_of(graph, first, "Mul"), graph.producer(second or "")
        shift: tuple[str, ...] = ()
        of_mean = offset
        if last.op == "Add":
            if offset is None or offset.op != "Sub" or offset.input(0) not in graph.weights:
                continue
            shift, of_mean = (offset.input(0) or "",), producer_of(graph, offset.input(1), "Mul")
        if product is None or of_mean is None or of_mean.op != "Mul":
            continue
        for x, inverse in (product.inputs, product.inputs[::-1]):
            norm = _times_inverse(graph, x or "", inverse or "", of_mean)
            if norm is None or len(norm.rest) > 1 or any(name not in graph.weights for name in norm.rest):
                continue
            nodes = (product, of_mean) if offset is of_mean or offset is None else (product, of_mean, offset)
            if len(norm.rest) < len(shift):
                continue
            return _fused(graph, norm, last, (*norm.rest, *shift), nodes)
    return None


def _times_inverse(graph: Graph, x: str, inverse: str, of_mean: Node) -> Normalized | None:
    """The norm of `x` whose inverse deviation is `inverse`, which `of_mean` multiplies by the mean of `x`."""
    maker = graph.producer(inverse)
    mean = mean_of(graph, next((name for name in of_mean.inputs if name != inverse), None))
    if maker is None or inverse not in of_mean.inputs or mean is None or not mean.is_kept or mean.x != x:
        return None
    is_product = maker.op in ("Mul", "Div", "Reciprocal")
    product = Product.ending_at(graph, maker) if is_product else Product(over=[inverse])  # a power of -0.5 by itself
    for found in inverses(graph, product, is_centered=True):
        if (found.moment.x, found.moment.axes) == (x, mean.axes):
            nodes = (*found.nodes, *product.nodes, *mean.nodes, maker)
            return Normalized(x, mean.axes, found.epsilon, True, found.others, nodes)
    return None


def _fused(
    graph: Graph, norm: Normalized, last: Node, constants: tuple[str, ...], nodes: tuple[Node, ...] = ()
) -> Fusion | None:
    found = form(graph, norm, constants)
    if found is None:
        return None
    op, attributes = found
    return fused(last, op, (norm.x, *constants), (*norm.nodes, *nodes, last), **attributes)


#: The longest patterns first: what a shorter one leaves out stays beside the norm.
MATCHERS = (
    _shifted,
    _moved,
    partial(_scaled, is_centered=True),
    partial(_bare, is_centered=True),
    partial(_scaled, is_centered=False),
    partial(_bare, is_centered=False),
)
