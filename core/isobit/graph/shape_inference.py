"""Output shapes of the ops that edits can touch, so that an edit is checked before any model is changed.

Source: ONNX operator specification. Dimensions may be symbols (text) or unknown (None); axis 0 is the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from isobit.graph.graph import Dimension, Node, Shape
from isobit.graph.ops import BROADCAST, RECURRENT, UNARY, VALUE_PRESERVING, WEIGHTED

_BOOLEAN = frozenset("Equal Greater Less GreaterOrEqual LessOrEqual And Or Xor Not IsNaN IsInf".split())
#: Ops whose output has the element type of input 0.
_ARITHMETIC = frozenset("Add Sub Mul Div Pow Max Min Mean Sum Mod".split())
_OF_DATA = (UNARY | VALUE_PRESERVING | WEIGHTED | RECURRENT | _ARITHMETIC) - _BOOLEAN - {"Cast"}
_WINDOWED = frozenset({"Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool"})


class ShapeError(Exception):
    """The inputs of a node do not fit together; the message says why."""


def infer(
    node: Node,
    shapes: Sequence[Shape | None],
    constants: Mapping[int, tuple[int, ...]],
    before: Shape | None = None,
) -> Shape | None:
    """The shape of output 0, or None where this op's rule is not known.

    `shapes` are the inputs' shapes in order (constants included), `constants` those of constant inputs alone. `before`
    is what is known of the output already: it tells whether a Reshape keeps the batch axis. Raises ShapeError, also
    where attributes have too few numbers for the shape that they meet, or a stride or a group of 0.
    """
    try:
        return _inferred(node, shapes, constants, before)
    except (IndexError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        met = ", ".join(str(shape) for shape in shapes)
        raise ShapeError(f"its attributes {dict(node.attributes)} do not fit inputs of shape {met}") from error


def _inferred(
    node: Node,
    shapes: Sequence[Shape | None],
    constants: Mapping[int, tuple[int, ...]],
    before: Shape | None,
) -> Shape | None:
    source = shapes[0] if shapes else None
    if source is None:
        return None
    if node.op in _WINDOWED:
        return _windowed(node, source, _kernels(node, shapes, constants))
    if node.op == "Linear":
        return _linear(source, constants)
    if node.op in UNARY:
        _check_channel_constants(node, source, constants)
        return source
    if node.op in BROADCAST:
        return _broadcast(shapes)
    if node.op in ("GlobalAveragePool", "GlobalMaxPool"):
        keep = node.attributes.get("keepdims", 1)
        return (*source[:2], *(1,) * (len(source) - 2)) if keep else source[:2]
    if node.op == "Concat":
        return _concat(shapes, int(node.attributes["axis"]))
    if node.op == "Transpose":
        return tuple(source[axis] for axis in node.attributes["perm"])
    if node.op == "Reshape":
        return _reshape(source, node.attributes.get("shape"), before)
    return None


def infer_dtype(node: Node, dtypes: Sequence[str | None]) -> str | None:
    """The element type of output 0, or None where no rule is known; `dtypes` are the inputs', None where left out."""
    if any(dtype is not None and dtype.startswith("complex") for dtype in dtypes):
        return None  # magnitudes and parts of complex numbers are real
    if node.op in _BOOLEAN:
        return "bool"
    if node.op in _ARITHMETIC and len({dtype for dtype in dtypes if dtype is not None}) > 1:
        return None  # frameworks bring operands of several types to one, each by its own rules
    if node.op == "CumSum" and dtypes[0] == "bool":
        return None  # truths are counted, in whatever integers the framework counts
    if node.op in _OF_DATA:
        return dtypes[0] if dtypes else None
    return None


def _kernels(
    node: Node, shapes: Sequence[Shape | None], constants: Mapping[int, tuple[int, ...]]
) -> Mapping[int, tuple[int, ...]]:
    """`constants`, with the shape of a kernel that is computed: Conv's is canonical as it is."""
    kernel = shapes[1] if node.op == "Conv" and len(shapes) > 1 and 1 not in constants else None
    sizes = tuple(n for n in kernel or () if isinstance(n, int))
    return constants if kernel is None or len(sizes) < len(kernel) else {**constants, 1: sizes}


def _windowed(node: Node, source: Shape, constants: Mapping[int, tuple[int, ...]]) -> Shape | None:
    attributes: Mapping[str, Any] = node.attributes
    channels: Dimension = source[1]
    kernel = attributes.get("kernel_shape", ())
    if node.op in ("Conv", "ConvTranspose"):
        if 1 not in constants:  # the weight is computed by nodes, so its layout is not known
            return None
        weight, group = constants[1], int(attributes.get("group", 1))
        if isinstance(channels, int) and channels != weight[1] * group:
            raise ShapeError(f"weight {weight} with group {group} reads {weight[1] * group} channels, not {channels}")
        if 2 in constants and constants[2] != (weight[0],):
            raise ShapeError(f"bias {constants[2]} does not fit {weight[0]} output channels")
        if weight[0] % group:
            raise ShapeError(f"{weight[0]} output channels do not divide into {group} groups")
        kernel, channels = weight[2:], weight[0]
    spatial = len(kernel)
    strides = attributes.get("strides", (1,) * spatial)
    dilations = attributes.get("dilations", (1,) * spatial)
    pads = attributes.get("pads", (0,) * (2 * spatial))
    sizes: list[Dimension] = []
    for axis, size in enumerate(source[2:]):
        if not isinstance(size, int) or "auto_pad" in attributes or "output_shape" in attributes:
            sizes.append(None)
            continue
        extent = (kernel[axis] - 1) * dilations[axis] + 1
        padding = pads[axis] + pads[axis + spatial]
        if node.op == "ConvTranspose":
            extra = attributes.get("output_padding", (0,) * spatial)[axis]
            sizes.append((size - 1) * strides[axis] + extent - padding + extra)
        else:
            steps, remainder = divmod(size + padding - extent, strides[axis])
            if remainder and attributes.get("ceil_mode") and (steps + 1) * strides[axis] < size + pads[axis]:
                steps += 1  # one more window, unless it would begin behind the last value
            sizes.append(steps + 1)
    return (source[0], channels, *sizes)


def _linear(source: Shape, constants: Mapping[int, tuple[int, ...]]) -> Shape | None:
    weight = constants.get(1)
    if weight is None:
        return None
    if isinstance(source[-1], int) and source[-1] != weight[1]:
        raise ShapeError(f"weight {weight} reads {weight[1]} features, not {source[-1]}")
    if 2 in constants and constants[2] != (weight[0],):
        raise ShapeError(f"bias {constants[2]} does not fit {weight[0]} outputs")
    return (*source[:-1], weight[0])


def _check_channel_constants(node: Node, source: Shape, constants: Mapping[int, tuple[int, ...]]) -> None:
    if node.op not in ("BatchNormalization", "InstanceNormalization", "PRelu") or len(source) < 2:
        return
    channels = source[1]
    for shape in constants.values():
        size = shape[0] if shape else 1
        if isinstance(channels, int) and size not in (1, channels):
            raise ShapeError(f"a constant of shape {shape} does not fit {channels} channels")


def _broadcast(shapes: Sequence[Shape | None]) -> Shape | None:
    known = [shape for shape in shapes if shape is not None]
    if len(known) < len(shapes):
        return None
    rank = max(map(len, known))
    result: list[Dimension] = []
    for axis in range(-rank, 0):
        dimension: Dimension = 1
        for shape in known:
            size = shape[axis] if -axis <= len(shape) else 1
            if isinstance(dimension, int) and dimension != 1 and isinstance(size, int) and size not in (1, dimension):
                raise ShapeError(f"shapes {[s for s in shapes]} do not broadcast")
            dimension = size if dimension == 1 or (isinstance(size, int) and size != 1) else dimension
        result.append(dimension)
    return tuple(result)


def _concat(shapes: Sequence[Shape | None], axis: int) -> Shape | None:
    parts = [s for s in shapes if s is not None]
    if len(parts) != len(shapes):
        return None
    sizes = [s[axis] for s in parts]
    total = sum(n for n in sizes if isinstance(n, int)) if all(isinstance(n, int) for n in sizes) else None
    return (*parts[0][:axis], total, *parts[0][axis + 1 :])


def _reshape(source: Shape, target: Sequence[int] | None, before: Shape | None) -> Shape | None:
    if target is None:
        return None
    shape = tuple(n if n >= 0 else None for n in target)
    if target and target[0] >= 0:
        return _same_number(source, shape, shape)
    # A leading axis of unknown size is not a batch axis (it may be batch times time): samples cannot be told apart.
    with_batch = (source[0], *shape[1:])
    if source[0] is None:
        return with_batch
    if before and before[0] != source[0]:  # neither is one whose size differs from the source's
        return with_batch if before[0] is None and _number(source[1:]) == _number(shape[1:]) else shape
    return _same_number(source[1:], shape[1:], with_batch, " a sample")


def _same_number(source: Shape, target: Shape, result: Shape, of: str = "") -> Shape:
    """`result`, if `source` and `target` hold equally many values, as far as both are known."""
    values, places = _number(source), _number(target)
    if values is not None and places is not None and values != places:
        raise ShapeError(f"{values} values{of} do not reshape to {places}")
    return result


def _number(shape: Shape) -> int | None:
    """How many values a shape holds, None where a size is not known."""
    sizes = [n for n in shape if isinstance(n, int)]
    return prod(sizes) if len(sizes) == len(shape) else None


def kept_axes(source: Sequence[object], target: Sequence[int]) -> list[int | None] | None:
    """The axis of `source` that each axis of a Reshape's `target` keeps, None for a new one of size 1.

    None where a Reshape does more than add and remove axes of size 1. Sizes of `source` that are no numbers are open.
    """
    if not target:
        return [] if all(size == 1 for size in source) else None
    wanted, first = target[0], source[0] if source else 1
    is_open = not isinstance(first, int)
    if source and (wanted < 0 or wanted == first or (is_open and wanted > 1)):
        rest = kept_axes(source[1:], target[1:])
        if rest is not None:
            return [0, *(None if axis is None else axis + 1 for axis in rest)]
    if wanted == 1:
        rest = kept_axes(source, target[1:])
        if rest is not None:
            return [None, *rest]
    if source and first == 1:
        rest = kept_axes(source[1:], target)
        if rest is not None:
            return [None if axis is None else axis + 1 for axis in rest]
    return None
