"""Pad and Resize of some axes as those of all.

onnxruntime moves transpositions through them by the order of all axes, and forgets that only some are named: such a
file does not load, or fails when it runs, as soon as its layers run in another layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from isobit_onnx.read.rewrite import Rewrite, attribute, constant_of, shape_of


def name_all_axes(model: ir.Model) -> None:
    """Write every Pad and Resize of a known rank for all axes, in place."""
    for graph in model.graphs():
        for node in list(graph):
            if node.domain == "" and node.op_type == "Pad":
                _pad(graph, node)
            elif node.domain == "" and node.op_type == "Resize" and "axes" in node.attributes:
                _resize(graph, node)


def _pad(graph: ir.Graph, node: ir.Node) -> None:
    x, widths, value, axes = [*node.inputs, *[None] * 3][:4]
    shape, named = shape_of(x), constant_of(axes)
    if x is None or widths is None or shape is None or named is None:
        return
    rank, places = len(shape), [int(axis) % len(shape) for axis in named]
    rewrite = Rewrite(graph, node)
    both = [*places, *(axis + rank for axis in places)]
    whole = _placed(rewrite, np.zeros(2 * rank, np.int64), both, widths, "pads")
    rewrite.finish(rewrite.op("Pad", x, whole, value, mode=str(attribute(node, "mode", "constant"))))


def _resize(graph: ir.Graph, node: ir.Node) -> None:
    x, region, scales, sizes = [*node.inputs, *[None] * 3][:4]
    shape = shape_of(x)
    policy = str(attribute(node, "keep_aspect_ratio_policy", "stretch"))
    if x is None or shape is None or (_is_given(sizes) and policy != "stretch"):
        return  # the policy is about the named axes alone
    rank, places = len(shape), [int(axis) % len(shape) for axis in attribute(node, "axes", ())]
    rewrite = Rewrite(graph, node)
    if region is not None and _is_given(region):
        whole = np.concatenate([np.zeros(rank, np.float32), np.ones(rank, np.float32)])
        region = _placed(rewrite, whole, [*places, *(axis + rank for axis in places)], region, "region")
    if sizes is not None and _is_given(sizes):
        indices = rewrite.constant(places, "axes", np.int64)
        sizes = rewrite.op("ScatterElements", rewrite.op("Shape", x), indices, sizes, axis=0)
    elif scales is not None:
        scales = _placed(rewrite, np.ones(rank, np.float32), places, scales, "scales")
    settings = {
        name: a.value for name, a in node.attributes.items() if name not in ("axes", "keep_aspect_ratio_policy")
    }
    rewrite.finish(rewrite.op("Resize", x, region, scales, sizes, **settings))


def _is_given(value: ir.Value | None) -> bool:
    """Whether an operand is there; older exporters write an empty constant where it is not."""
    return value is not None and not (value.const_value is not None and value.const_value.size == 0)


def _placed(rewrite: Rewrite, whole: NDArray[Any], places: Sequence[int], part: ir.Value, name: str) -> ir.Value:
    """`whole` with the values of `part` at `places`, computed ahead where they are constants."""
    array = constant_of(part)
    if array is not None:
        whole[list(places)] = array
        return rewrite.constant(whole, name, whole.dtype)
    indices = rewrite.constant(list(places), f"{name}_axes", np.int64)
    return rewrite.op("ScatterElements", rewrite.constant(whole, name, whole.dtype), indices, part, axis=0)
