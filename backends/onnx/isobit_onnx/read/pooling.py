"""Pooling that rounds the number of windows up, written so that ONNX's shape inference counts as runtimes do.

A last window that would begin behind the last value (and its padding before) does not exist. Shape inference of opsets
below 22 counts it, and constants are folded from what it infers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from isobit_onnx.read.rewrite import Rewrite, attribute, shape_of

_POOLS = frozenset({"MaxPool", "AveragePool", "LpPool"})


def count_windows(
    model: ir.Model, declared: Sequence[ir.Shape | None], infer_shapes: Callable[[ir.Model], object]
) -> None:
    """Rewrite such pooling, in place, in execution order: what follows one has other sizes then.

    `declared` are the shapes of the model's outputs before any were inferred.
    """
    for graph in list(model.graphs()):
        for node in list(graph):
            if node.op_type in _POOLS and not node.domain and attribute(node, "ceil_mode", 0):
                tail, others_round = _unread_tail(node)
                if any(tail):
                    _forget_shapes(model, node, declared)
                    _leave_out(graph, node, tail, others_round)
                    infer_shapes(model)


def crop_unread(model: ir.Model) -> None:
    """Rewrite such pooling, in place, where the shapes of the model are the runtimes' own: those of another exporter.

    onnxruntime infers the shapes of a file anew, and refuses two readers of which only one follows the other count.
    """
    for node in list(model.graph):
        if node.op_type in _POOLS and not node.domain and attribute(node, "ceil_mode", 0):
            tail, others_round = _unread_tail(node, is_inferred=False)
            if any(tail):
                _leave_out(model.graph, node, tail, others_round)


def _unread_tail(node: ir.Node, *, is_inferred: bool = True) -> tuple[list[int], bool]:
    """By spatial axis, what no window reads where one too many is or would be inferred; empty where it is not known.

    And whether other axes have, or may have, a window more by rounding up.
    """
    shape = shape_of(node.inputs[0])
    kernel = list(node.attributes.get_ints("kernel_shape", []))
    if shape is None or len(shape) != len(kernel) + 2 or node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        return [], False
    spatial, ones = len(kernel), [1] * len(kernel)
    strides, dilations = (list(node.attributes.get_ints(key, ones)) for key in ("strides", "dilations"))
    pads = list(node.attributes.get_ints("pads", [0] * (2 * spatial)))
    inferred = shape_of(node.outputs[0]) or (None,) * len(shape)
    tail, others_round = [], False
    for axis, size in enumerate(shape[2:]):
        if size is None:
            tail.append(0)
            others_round = True
            continue
        extent = (kernel[axis] - 1) * dilations[axis] + 1
        steps, remainder = divmod(size + pads[axis] + pads[axis + spatial] - extent, strides[axis])
        is_last_unread = (steps + 1) * strides[axis] >= size + pads[axis]
        is_counted = is_inferred and inferred[axis + 2] == steps + 1  # as opsets from 22 on do
        tail.append(remainder if is_last_unread and not is_counted else 0)
        others_round |= bool(remainder) and not is_last_unread
    return tail, others_round


def _leave_out(graph: ir.Graph, node: ir.Node, tail: list[int], others_round: bool) -> None:
    """Have no window that would begin in the tail: round down where no other axis rounds up, else crop."""
    if others_round:
        _crop(graph, node, tail)
    else:
        node.attributes["ceil_mode"] = ir.AttrInt64("ceil_mode", 0)


def _crop(graph: ir.Graph, node: ir.Node, tail: list[int]) -> None:
    """Take the tail off the padding behind, and off the values where that is not enough.

    Places of maxima (output 1) would be those in the cropped values: a node that gives them is left as it is then.
    """
    x = node.inputs[0]
    if x is None:
        return
    spatial = len(tail)
    pads = list(node.attributes.get_ints("pads", [0] * (2 * spatial)))
    padding = [min(cut, pads[axis + spatial]) for axis, cut in enumerate(tail)]
    values = [cut - less for cut, less in zip(tail, padding, strict=True)]
    if any(values) and any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return
    rewrite = Rewrite(graph, node)
    if any(values):
        axes = [axis for axis, cut in enumerate(values) if cut]
        starts = rewrite.constant([0] * len(axes), "starts", np.int64)
        ends = rewrite.constant([-values[axis] for axis in axes], "ends", np.int64)
        x = rewrite.op("Slice", x, starts, ends, rewrite.constant([axis + 2 for axis in axes], "axes", np.int64))
    attributes = {key: value.value for key, value in node.attributes.items()}
    attributes["pads"] = [*pads[:spatial], *(pads[axis + spatial] - less for axis, less in enumerate(padding))]
    rewrite.op(node.op_type, x, outputs=len(node.outputs), **attributes)
    rewrite.finish(*rewrite.nodes[-1].outputs)


def _forget_shapes(model: ir.Model, pool: ir.Node, declared: Sequence[ir.Shape | None]) -> None:
    """The shapes that were inferred with one window too many: those of all that follows."""
    waiting, seen = [pool], {pool}
    while waiting:
        for value in waiting.pop().outputs:
            value.shape = None
            following = {use.node for use in value.uses()} - seen
            waiting.extend(following)
            seen |= following
    for output, shape in zip(model.graph.outputs, declared, strict=True):
        if output.producer() in seen:
            output.shape = None if shape is None else shape.copy()
