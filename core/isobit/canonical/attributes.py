"""Attributes in one form: defaults filled in, padding explicit, axes counted alike, what changes nothing left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from isobit.graph.graph import Graph, Node, Shape
from isobit.graph.ops import DEFAULTS, IGNORED_ATTRIBUTES

_WINDOWED = frozenset({"Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool"})
_LAST_AXIS = frozenset({"Softmax", "LogSoftmax", "Hardmax", "LayerNormalization", "RMSNormalization"})


def normalize_attributes(graph: Graph) -> Graph:
    """Every node's attributes in canonical form."""
    return graph.with_nodes(tuple(_normalized(graph, node) for node in graph.nodes))


def _normalized(graph: Graph, node: Node) -> Node:
    attributes: dict[str, Any] = {**DEFAULTS.get(node.op, {}), **node.attributes}
    for name in IGNORED_ATTRIBUTES & attributes.keys():
        if node.op != "Dropout":
            del attributes[name]
    source = node.input(0)
    shape = graph.tensors[source].shape if source is not None and source in graph.tensors else None
    if node.op in _WINDOWED:
        _explicit_window(graph, node, attributes, shape)
    if node.op in _LAST_AXIS and shape is not None and attributes["axis"] >= 0:
        attributes["axis"] -= len(shape)
    if node.op == "Concat" and shape is not None and attributes["axis"] < 0:
        attributes["axis"] += len(shape)
    if node.op == "Slice" and "starts" in attributes:
        attributes.setdefault("axes", tuple(range(len(attributes["starts"]))))
        attributes.setdefault("steps", (1,) * len(attributes["starts"]))
    if node.op == "Split" and shape is not None:
        _explicit_split(attributes, shape)
    if node.op == "Transpose" and "perm" not in attributes and shape is not None:
        attributes["perm"] = tuple(range(len(shape)))[::-1]
    if node.op.startswith("Reduce") and shape is not None:
        axes = attributes.get("axes", tuple(range(len(shape))))
        attributes["axes"] = tuple(sorted(a % len(shape) for a in axes))
        attributes.setdefault("keepdims", 1)
    return replace(node, attributes={k: tuple(v) if isinstance(v, list) else v for k, v in attributes.items()})


def _explicit_split(attributes: dict[str, Any], shape: Shape) -> None:
    """Sizes for a number of parts; the last is smaller where they are not equal."""
    axis = attributes["axis"] = int(attributes.get("axis", 0)) % len(shape)
    count, total = attributes.get("num_outputs"), shape[axis]
    if count is not None and isinstance(total, int):
        size = -(-total // int(count))
        attributes["split"] = (*(size,) * (int(count) - 1), total - size * (int(count) - 1))
        del attributes["num_outputs"]


def _explicit_window(graph: Graph, node: Node, attributes: dict[str, Any], shape: Shape | None) -> None:
    kernel = attributes.get("kernel_shape")
    weight = node.input(1)
    if kernel is None and weight is not None and weight in graph.weights:
        kernel = graph.weights[weight].shape[2:]
    if kernel is None:
        return
    spatial = len(kernel)
    attributes["kernel_shape"] = tuple(kernel)
    for name in ("strides", "dilations"):
        attributes[name] = tuple(attributes.get(name, (1,) * spatial))
    mode = attributes.pop("auto_pad", "NOTSET")
    if mode.startswith("SAME") and (shape is None or node.op == "ConvTranspose"):
        attributes["auto_pad"] = mode  # the padding depends on output_shape or on an unknown input size: the mode stays
        attributes.pop("pads", None)
    elif mode in ("NOTSET", "VALID") or shape is None:
        attributes["pads"] = tuple(attributes.get("pads", (0,) * (2 * spatial)))
    else:
        pads = _same_padding(shape[2:], kernel, attributes["strides"], attributes["dilations"], mode)
        if pads is None:
            attributes["auto_pad"] = mode
        else:
            attributes["pads"] = pads


def _same_padding(
    sizes: Shape, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], mode: str
) -> tuple[int, ...] | None:
    """ONNX auto_pad SAME_UPPER / SAME_LOWER as begin and end pads; None for a dynamic size."""
    begin, end = [], []
    for size, k, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        if not isinstance(size, int):
            if stride != 1:
                return None
            size = stride  # with stride 1 the padding does not depend on the size
        total = max((-(-size // stride) - 1) * stride + (k - 1) * dilation + 1 - size, 0)
        small, large = total // 2, total - total // 2
        begin.append(small if mode == "SAME_UPPER" else large)
        end.append(large if mode == "SAME_UPPER" else small)
    return (*begin, *end)
