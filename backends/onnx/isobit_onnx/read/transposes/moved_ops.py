"""Which operations work on transposed tensors just as well, and what becomes of their axes there.

A permutation says which axis of the tensor as it was each axis of the moved tensor is, as ``perm`` of a Transpose does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from isobit.graph.ops import BROADCAST, UNARY
from isobit_onnx.read.rewrite import attribute, changed_constant, constant_of, new_constant

Perm = tuple[int, ...]

_AXIS = frozenset({"Concat", "Split", "Softmax", "LogSoftmax", "Hardmax", "ArgMax", "ArgMin"})
_LAST_BY_DEFAULT = frozenset({"Softmax", "LogSoftmax", "Hardmax"})
_NORMS = frozenset(name for name in UNARY if name.endswith("Normalization"))
_POINTWISE = (UNARY | BROADCAST | {"PRelu", "BitwiseNot"}) - _AXIS - _NORMS - {"LRN", "CumSum", "Trilu"}
_REDUCTIONS = frozenset(f"Reduce{kind}" for kind in "Mean Sum Max Min Prod L1 L2 SumSquare LogSum LogSumExp".split())


@dataclass(frozen=True)
class Moved:
    """A node on moved tensors: the permutations of what it reads, by input, and of its outputs.

    `rewrite` adapts its axes and constants, in place. `is_slower` where it reads along an axis that is no longer last;
    `is_view` where a view reads the same elements in the same order.
    """

    inputs: Mapping[int, Perm]
    outputs: Sequence[Perm]
    rewrite: Callable[[ir.Graph], None] = field(default=lambda graph: None)
    is_slower: bool = False
    is_view: bool = False


def moved(node: ir.Node, perm: Perm, read: int | None = None, made: int | None = None) -> Moved | None:
    """The node where its input `read`, or its output `made`, is moved by `perm`; None where it cannot be."""
    if node.domain:
        return None
    op = node.op_type
    if op in _POINTWISE:
        return _pointwise(node, perm)
    if op in _AXIS:
        return _along_axis(node, perm)
    if op in _REDUCTIONS:
        return _reduction(node, perm, read)
    rule = _RULES.get(op)
    return rule(node, perm, read) if rule is not None and (read in (0, None)) else None


def rank_of(value: ir.Value | None) -> int | None:
    """The number of axes, None where it is not known. A Transpose says it where no shape was inferred."""
    if value is not None and value.shape is not None:
        return len(value.shape)
    producer = value.producer() if value is not None else None
    if producer is None or producer.op_type != "Transpose" or producer.domain or "perm" not in producer.attributes:
        return None
    return len(producer.attributes["perm"].as_ints())


def inverse(perm: Perm) -> Perm:
    """The permutation that takes `perm` back."""
    return tuple(int(axis) for axis in np.argsort(perm))


def is_identity(perm: Perm) -> bool:
    """Whether a permutation moves nothing."""
    return perm == tuple(range(len(perm)))


def keeps_order(value: ir.Value, perm: Perm) -> bool:
    """Whether a permutation moves axes of size one alone, so that the elements stay in their order."""
    sizes = list(value.shape) if value.shape is not None else [None] * len(perm)
    kept = [axis for axis in perm if sizes[axis] != 1]
    return kept == sorted(kept)


# --- rules ----------------------------------------------------------------------------------------------------------


def _pointwise(node: ir.Node, perm: Perm) -> Moved | None:
    if any(rank_of(output) != len(perm) for output in node.outputs if output.name):
        return None
    inputs: dict[int, Perm] = {}
    constants = []
    for index, value in enumerate(node.inputs):
        if value is None or _is_single(value):
            continue
        if constant_of(value) is not None:
            constants.append(index)
        elif rank_of(value) == len(perm):
            inputs[index] = perm
        else:
            return None

    def rewrite(graph: ir.Graph) -> None:
        for index in constants:
            value = node.inputs[index]
            array = constant_of(value)
            if value is None or array is None:
                continue
            array = array.reshape((1,) * (len(perm) - array.ndim) + array.shape).transpose(perm)
            while array.ndim > 1 and array.shape[0] == 1:
                array = array[0]
            node.replace_input_with(index, changed_constant(graph, value, array, "moved"))

    return Moved(inputs, [perm] * len(node.outputs), rewrite) if inputs else None


def _is_single(value: ir.Value) -> bool:
    """Whether a value is one number, which is the same wherever it is read."""
    return value.shape is not None and all(size == 1 for size in value.shape)


def _along_axis(node: ir.Node, perm: Perm) -> Moved | None:
    tensors = [value for value in node.inputs if value is not None]
    if node.op_type == "Split":
        tensors = tensors[:1]
    kept = node.op_type not in ("ArgMax", "ArgMin") or attribute(node, "keepdims", 1)
    if not kept or any(rank_of(value) != len(perm) for value in (*tensors, *node.outputs)):
        return None
    default = -1 if node.op_type in _LAST_BY_DEFAULT else 0
    axis = perm.index(attribute(node, "axis", default) % len(perm))

    def rewrite(graph: ir.Graph) -> None:
        node.attributes["axis"] = ir.AttrInt64("axis", axis)
        for index, value in enumerate(tensors):
            array = constant_of(value)
            if array is not None:
                node.replace_input_with(index, changed_constant(graph, value, array.transpose(perm), "moved"))

    inputs = {index: perm for index, value in enumerate(tensors) if constant_of(value) is None}
    is_slower = node.op_type in _LAST_BY_DEFAULT and axis != len(perm) - 1
    return Moved(inputs, [perm] * len(node.outputs), rewrite, is_slower)


def _reduction(node: ir.Node, perm: Perm, read: int | None) -> Moved | None:
    source = node.inputs[0]
    axes = _axes(node, rank_of(source))
    if axes is None or (read is None and not attribute(node, "keepdims", 1)) or rank_of(source) != len(perm):
        return None
    kept = attribute(node, "keepdims", 1)
    result = perm if kept else _without(perm, axes)
    return Moved({0: perm}, [result], _moving_axes(node, axes, perm))


def _squeeze(node: ir.Node, perm: Perm, read: int | None) -> Moved | None:
    axes = _axes(node, rank_of(node.inputs[0]))
    if axes is None or not axes:
        return None
    source = perm if read == 0 else _with(perm, axes)
    return Moved({0: source}, [_without(source, axes)], _moving_axes(node, axes, source))


def _unsqueeze(node: ir.Node, perm: Perm, read: int | None) -> Moved | None:
    axes = _axes(node, rank_of(node.outputs[0]))
    if axes is None or not axes:
        return None
    result = perm if read is None else _with(perm, axes)
    return Moved({0: _without(result, axes)}, [result], _moving_axes(node, axes, result))


def _reshape(node: ir.Node, perm: Perm, read: int | None) -> Moved | None:
    """A view to or from a tensor whose axes of size one alone are moved."""
    value = node.outputs[0] if read is None else node.inputs[0]
    if value is None or rank_of(value) != len(perm) or not keeps_order(value, perm):
        return None
    rank = rank_of(node.outputs[0])
    if node.op_type == "Flatten":
        return (
            Moved({0: perm}, [(0, 1)], is_view=True)
            if read == 0 and attribute(node, "axis", 1) == 1 and perm[0] == 0
            else None
        )
    sizes = constant_of(node.inputs[1])
    if sizes is None or rank is None or np.any(sizes[1:] == 0) or (sizes.size and sizes[0] == 0 and perm[0] != 0):
        return None
    if read is None:
        entry = _with_settings(node, perm, {1: perm})
        return None if entry is None else Moved({}, [perm], entry.rewrite)
    return Moved({0: perm}, [tuple(range(rank))], is_view=True)


def _slice(node: ir.Node, perm: Perm, read: int | None) -> Moved | None:
    rank = rank_of(node.inputs[0])
    if rank != len(perm):
        return None
    given = node.inputs[3] if len(node.inputs) > 3 else None
    if given is not None:
        axes = constant_of(given)
        return None if axes is None else Moved({0: perm}, [perm], _moving_axes(node, _normal(axes, rank), perm, 3))
    starts = constant_of(node.inputs[1])
    if starts is None:
        return None

    def rewrite(graph: ir.Graph) -> None:
        moved_axes = [perm.index(axis) for axis in range(starts.size)]
        value = new_constant(graph, np.array(moved_axes, np.int64), f"{node.outputs[0].name}/axes")
        if len(node.inputs) < 4:
            node.resize_inputs(4)
        node.replace_input_with(3, value)

    return Moved({0: perm}, [perm], rewrite)


def _pad(node: ir.Node, perm: Perm, read: int | None) -> Moved | None:
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        axes = constant_of(node.inputs[3])
        return None if axes is None else Moved({0: perm}, [perm], _moving_axes(node, _normal(axes, len(perm)), perm, 3))
    return _with_settings(node, perm, {1: (*perm, *(axis + len(perm) for axis in perm))})


def _tile(node: ir.Node, perm: Perm, read: int | None) -> Moved | None:
    return _with_settings(node, perm, {1: perm})


def _expand(node: ir.Node, perm: Perm, read: int | None) -> Moved | None:
    shape = constant_of(node.inputs[1])
    same_rank = shape is not None and shape.size == len(perm) == rank_of(node.inputs[0])
    return _with_settings(node, perm, {1: perm}) if same_rank else None


def _resize(node: ir.Node, perm: Perm, read: int | None) -> Moved | None:
    roi = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
    if (roi is not None and roi.size) or "axes" in node.attributes or rank_of(node.inputs[0]) != len(perm):
        return None
    if attribute(node, "keep_aspect_ratio_policy", "stretch") not in ("stretch", b"stretch"):
        return None
    settings = {index: perm for index in (2, 3) if index < len(node.inputs) and node.inputs[index] is not None}
    scales = constant_of(node.inputs[2]) if 2 in settings else None
    if attribute(node, "mode", "nearest") != "nearest":  # runtimes interpolate along the last axes alone
        outer = None if scales is None or scales.size != len(perm) else scales[list(perm)][:2]
        if outer is None or np.any(outer != 1):
            return None
    return _with_settings(node, perm, settings)


def _shape(node: ir.Node, perm: Perm, read: int | None) -> Moved | None:
    """The sizes of a moved tensor are read in their old order by a Gather."""
    if read is None or rank_of(node.inputs[0]) != len(perm) or node.outputs[0].is_graph_output():
        return None
    if "start" in node.attributes or "end" in node.attributes:
        return None

    def rewrite(graph: ir.Graph) -> None:
        name = node.outputs[0].name
        order = new_constant(graph, np.array(inverse(perm), np.int64), f"{name}/order")
        gather = ir.Node("", "Gather", [node.outputs[0], order], name=f"{node.name or name}/ordered")
        gather.outputs[0].name, gather.outputs[0].type = f"{name}/ordered", node.outputs[0].type
        gather.outputs[0].shape = node.outputs[0].shape
        graph.insert_after(node, gather)
        for use in list(node.outputs[0].uses()):
            if use.node is not gather:
                use.node.replace_input_with(use.idx, gather.outputs[0])

    return Moved({0: perm}, [(0,)], rewrite)


_RULES: Mapping[str, Callable[[ir.Node, Perm, int | None], Moved | None]] = {
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Reshape": _reshape,
    "Flatten": _reshape,
    "Slice": _slice,
    "Pad": _pad,
    "Tile": _tile,
    "Expand": _expand,
    "Resize": _resize,
    "Shape": _shape,
}


# --- axes -----------------------------------------------------------------------------------------------------------


def _axes(node: ir.Node, rank: int | None) -> list[int] | None:
    """The axes of a reduction or a view, all of them where none are said; None where they are computed."""
    if rank is None:
        return None
    if len(node.inputs) < 2 or node.inputs[1] is None:
        keeps_all = attribute(node, "noop_with_empty_axes", 0)
        return None if keeps_all or node.op_type in ("Squeeze", "Unsqueeze") else list(range(rank))
    axes = constant_of(node.inputs[1])
    return None if axes is None else _normal(axes, rank)


def _normal(axes: Sequence[int] | np.ndarray[tuple[int, ...], np.dtype[np.int64]], rank: int) -> list[int]:
    return [int(axis) % rank for axis in np.asarray(axes).reshape(-1)]


def _without(perm: Perm, axes: Sequence[int]) -> Perm:
    """The permutation of what is left when axes of the tensor as it was are gone."""
    kept = [axis for axis in perm if axis not in axes]
    return tuple(sorted(kept).index(axis) for axis in kept)


def _with(perm: Perm, axes: Sequence[int]) -> Perm:
    """The permutation with further axes of size one, each beside the axis that it was beside."""
    rank = len(perm) + len(axes)
    old = [axis for axis in range(rank) if axis not in axes]
    result = [old[axis] for axis in perm]
    for axis in sorted(axes):
        following = next((other for other in range(axis + 1, rank) if other in result), None)
        if axis > 1 and axis - 1 in result:
            place = result.index(axis - 1) + 1
        elif axis == 0:
            place = 0
        else:
            place = len(result) if following is None else result.index(following)
        result.insert(place, axis)
    return tuple(result)


def _moving_axes(node: ir.Node, axes: Sequence[int], perm: Perm, index: int = 1) -> Callable[[ir.Graph], None]:
    def rewrite(graph: ir.Graph) -> None:
        value = node.inputs[index] if len(node.inputs) > index else None
        if value is not None:
            places = np.array([perm.index(axis) for axis in axes], np.int64)
            # Views want their axes in ascending order; slices and pads have a number for each.
            places = np.sort(places) if index == 1 else places
            node.replace_input_with(index, new_constant(graph, places, f"{node.outputs[0].name}/axes"))

    return rewrite


def _with_settings(node: ir.Node, perm: Perm, settings: Mapping[int, Perm]) -> Moved | None:
    """A node with one number an axis in constant inputs, each of which is reordered."""
    arrays = {index: constant_of(node.inputs[index]) for index in settings}
    if any(array is None or array.size != len(settings[index]) for index, array in arrays.items()):
        return None

    def rewrite(graph: ir.Graph) -> None:
        for index, array in arrays.items():
            if array is not None:
                value = new_constant(graph, array[list(settings[index])], f"{node.outputs[0].name}/moved{index}")
                node.replace_input_with(index, value)

    return Moved({0: perm}, [perm], rewrite)
