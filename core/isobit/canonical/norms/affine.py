"""Which norm it is by its axes and the shapes of its scale and shift, and these as vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from isobit.canonical.norms.deviations import Axes, Normalized
from isobit.canonical.weight_views import Weights
from isobit.graph.graph import Graph, Node
from isobit.graph.layout import View

NORMS = frozenset({"LayerNormalization", "RMSNormalization", "GroupNormalization", "InstanceNormalization"})

Sizes = tuple[int, ...]


def form(graph: Graph, norm: Normalized, constants: Sequence[str]) -> tuple[str, dict[str, Any]] | None:
    """The op and its attributes, None where no op has constants of these shapes; without any, each norm has one."""
    op = "LayerNormalization" if norm.is_centered else "RMSNormalization"
    rank = graph.tensors[norm.x].rank
    if rank is not None and -norm.axes[0] >= rank:
        return None  # over the batch
    shapes = [_stripped(graph.weights[name].shape) for name in constants]
    attributes: dict[str, Any] = {"axis": norm.axes[0], "epsilon": norm.epsilon}
    if not _is_trailing(norm.axes):
        attributes["axes"] = norm.axes
        channel = (1,) * (-norm.axes[0] - 1)
        is_vector = len(norm.axes) == 1 and all(shape[1:] == channel and shape for shape in shapes)
        return (op, attributes) if is_vector or not shapes else None
    if all(len(shape) == 1 for shape in shapes) if norm.axes == (-1,) else _are_whole(graph, norm, constants):
        return op, attributes
    if not norm.is_centered or rank is None or any(shape[1:] != (1,) * (rank - 2) or not shape for shape in shapes):
        return None
    if len(norm.axes) == rank - 2:
        return "InstanceNormalization", {"epsilon": norm.epsilon}
    return ("GroupNormalization", {"epsilon": norm.epsilon, "num_groups": 1}) if len(norm.axes) == rank - 1 else None


def _is_trailing(axes: Axes) -> bool:
    return axes == tuple(range(-len(axes), 0))


def _are_whole(graph: Graph, norm: Normalized, constants: Sequence[str]) -> bool:
    """Whether constants have a number for each place that is normalised together."""
    shape = graph.tensors[norm.x].shape
    sizes = shape[norm.axes[0] :] if shape is not None else None
    return all(
        sizes is not None and _without_ones(graph.weights[name].shape, len(norm.axes)) == sizes for name in constants
    )


def _stripped(shape: Sizes) -> Sizes:
    """Without leading axes of size 1."""
    return shape[next((axis for axis, size in enumerate(shape) if size != 1), len(shape)) :]


def _without_ones(shape: Sizes, count: int) -> Sizes:
    """The last `count` sizes, where those in front of them are 1."""
    return shape[-count:] if all(size == 1 for size in shape[:-count]) else shape


def with_vectors(node: Node, weights: Weights) -> Node:
    """Scale and shift without the axes of size 1 that broadcast them."""
    if node.op not in NORMS:
        return node
    inputs = list(node.inputs)
    for index in (1, 2):
        name = node.input(index)
        if name is None or name not in weights:
            continue
        shape = weights[name].shape
        target = _target(node, shape)
        if target != shape:
            inputs[index] = weights.view(name, (View(target, shape),))
    return node if inputs == list(node.inputs) else replace(node, inputs=tuple(inputs))


def _target(node: Node, shape: Sizes) -> Sizes:
    axis = int(node.attributes.get("axis", -1))
    if node.op in ("LayerNormalization", "RMSNormalization") and "axes" not in node.attributes:
        return _without_ones(shape, -axis) if axis < 0 and len(shape) > -axis else shape
    size = max(shape, default=1)
    return (size,) if len(shape) > 1 and all(n in (1, size) for n in shape) and shape.count(size) == 1 else shape
