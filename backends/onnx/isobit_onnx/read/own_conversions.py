"""What onnx's converter gets wrong or does not know, written for the newer opset by ourselves.

A node that is written already keeps out of the converter's sight in a domain of its own, and comes back afterwards.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from isobit_onnx.read.rewrite import Rewrite, attribute, constant_of, shape_of

_ASIDE = "isobit.set_aside"

_SOFT = frozenset({"Softmax", "LogSoftmax", "Hardmax"})


def set_aside(model: ir.Model, opset: int) -> None:
    """Write what changed its meaning since `opset` for newer ones, in place; `bring_back` undoes the hiding."""
    for graph in list(model.graphs()):
        for node in list(graph):
            if node.domain in ("", "ai.onnx"):
                _set_aside(graph, node, opset)
    if any(node.domain == _ASIDE for graph in model.graphs() for node in graph):
        model.opset_imports[_ASIDE] = 1


def bring_back(model: ir.Model) -> None:
    """Give the nodes that were set aside their domain back, in place."""
    for graph in model.graphs():
        for node in graph:
            if node.domain == _ASIDE:
                node.domain, node.version = "", None
    model.opset_imports.pop(_ASIDE, None)


def _set_aside(graph: ir.Graph, node: ir.Node, opset: int) -> None:
    if node.op_type in ("Upsample", "Resize") and opset < 11:
        _resize(graph, node)
    elif node.op_type in _SOFT and opset < 13:
        _soft(graph, node)
    elif node.op_type == "Pad" and opset < 11:
        _pad(graph, node)
    elif node.op_type == "GroupNormalization" and opset < 21:
        _group_norm(graph, node)
    elif not onnx.defs.has(node.op_type, opset, ""):  # onnxruntime has it in older opsets than ONNX
        node.domain = _ASIDE


def _hidden(value: ir.Value) -> ir.Value:
    producer = value.producer()
    if producer is not None:
        producer.domain = _ASIDE
    return value


def _resize(graph: ir.Graph, node: ir.Node) -> None:
    """Up to opset 10 positions scale from the corner; nearest rounds them up where sizes shrink, else down."""
    rewrite = Rewrite(graph, node)
    x = node.inputs[0]
    if x is None:
        return
    given = attribute(node, "scales", None)
    scales = rewrite.constant(list(given), "scales") if given is not None else node.inputs[1]
    mode = str(attribute(node, "mode", "nearest"))
    array = constant_of(scales)
    settings: dict[str, Any] = {
        "mode": "linear" if mode == "bilinear" else mode,
        "coordinate_transformation_mode": "asymmetric",
    }

    def resized(source: ir.Value, by: ir.Value | None, rounding: str) -> ir.Value:
        nearest: dict[str, Any] = {"nearest_mode": rounding} if mode == "nearest" else {}
        return _hidden(rewrite.op("Resize", source, None, by, **settings, **nearest))

    if array is None or mode != "nearest" or array.min() >= 1 or array.max() <= 1:
        shrinks = array is not None and array.min() < 1
        rewrite.finish(resized(x, scales, "ceil" if shrinks else "floor"))
        return
    larger = resized(x, rewrite.constant(np.maximum(array, 1), "growing"), "floor")
    rewrite.finish(resized(larger, rewrite.constant(np.minimum(array, 1), "shrinking"), "ceil"))


def _pad(graph: ir.Graph, node: ir.Node) -> None:
    """Up to opset 10 widths and value are attributes."""
    rewrite = Rewrite(graph, node)
    mode = str(attribute(node, "mode", "constant"))
    widths = rewrite.constant(list(attribute(node, "pads", ())), "pads", np.int64)
    value = rewrite.constant(attribute(node, "value", 0.0), "value") if mode == "constant" else None
    rewrite.finish(_hidden(rewrite.op("Pad", node.inputs[0], widths, value, mode=mode)))


def _group_norm(graph: ir.Graph, node: ir.Node) -> None:
    """Up to opset 20 scale and shift are one number a group; the converter leaves them so where it knows no shape."""
    x, groups, shape = node.inputs[0], int(attribute(node, "num_groups", 1)), shape_of(node.inputs[0])
    rewrite = Rewrite(graph, node)
    channels = shape[1] if shape is not None and len(shape) > 1 else None
    if channels is None:
        repeats = rewrite.op(
            "Div", rewrite.op("Shape", x, start=1, end=2), rewrite.constant([groups], "groups", np.int64)
        )
        sizes = rewrite.op("Concat", rewrite.constant([1], "one", np.int64), repeats, axis=0)
    else:
        sizes = rewrite.constant([1, channels // groups], "sizes", np.int64)
    column, row = rewrite.constant([1], "axis", np.int64), rewrite.constant([-1], "row", np.int64)
    vectors = [
        rewrite.op("Reshape", rewrite.op("Expand", rewrite.op("Unsqueeze", vector, column), sizes), row)
        for vector in node.inputs[1:3]
    ]
    settings = {name: attribute(node, name, None) for name in ("epsilon", "num_groups")}
    rewrite.finish(_hidden(rewrite.op("GroupNormalization", x, *vectors, **settings)))


def _soft(graph: ir.Graph, node: ir.Node) -> None:
    """Up to opset 12 all axes from ``axis`` on are one."""
    x, axis, shape = node.inputs[0], int(attribute(node, "axis", 1)), shape_of(node.inputs[0])
    if x is None:
        return
    rewrite = Rewrite(graph, node)
    if shape is not None:
        behind = shape[axis % len(shape) + 1 :]
        if all(size == 1 for size in behind):
            rewrite.finish(_hidden(rewrite.op(node.op_type, x, axis=-1 - len(behind))))
            return
    if axis < 0 and shape is None:
        node.domain = _ASIDE  # the rank is not known: what most exporters mean is this axis alone
        return
    flat = rewrite.op("Flatten", x, axis=axis % len(shape) if shape is not None else axis)
    result = _hidden(rewrite.op(node.op_type, flat, axis=-1))
    rewrite.finish(rewrite.op("Reshape", result, rewrite.op("Shape", x)))
