"""Padding in front of a convolution or a maximum that is the layer's own: zeros there, what never wins here.

Runtimes fuse the first. Between the second and its layer no grid could hold what was added.
"""

from __future__ import annotations

import numpy as np

from isobit.canonical.matching import Fusion, fuse, fused, producer_of
from isobit.graph.graph import Graph, Node

#: A number below all data: exporters write the lowest of float16 or float32, or minus infinity.
_BELOW_ALL = -6e4


def absorb_padding(graph: Graph) -> Graph:
    """A Pad over space alone that a Conv or a MaxPool is the only reader of moves into the ``pads`` of its reader."""
    return fuse(fuse(graph, _padded_conv), _padded_maximum)


def _padded_conv(graph: Graph, last: Node) -> Fusion | None:
    if last.op != "Conv" or "pads" not in last.attributes:
        return None
    pad = producer_of(graph, last.input(0), "Pad")
    own = last.attributes["pads"]
    spatial = len(own) // 2
    if pad is None or not _is_zero_padding(pad, spatial):
        return None
    return _joined(pad, last, own)


def _padded_maximum(graph: Graph, last: Node) -> Fusion | None:
    kernel = last.attributes.get("kernel_shape", ()) if last.op == "MaxPool" else ()
    settings = last.attributes
    if not kernel or settings.get("ceil_mode") or settings.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    pad, spatial = producer_of(graph, last.input(0), "Pad"), len(kernel)
    value = pad.attributes.get("value", 0) if pad is not None else 0
    if pad is None or not np.size(value) or not np.all(np.asarray(value) < _BELOW_ALL):
        return None
    own = tuple(settings.get("pads", (0,) * 2 * spatial))
    dilations = settings.get("dilations", (1,) * spatial)
    reach = [(size - 1) * step for size, step in zip(kernel, dilations, strict=True)]
    if not _is_over_space(pad, spatial) or any(
        begin > most for begin, most in zip(_sums(pad, own, spatial), (*reach, *reach), strict=True)
    ):
        return None  # a window of padding alone would be what was added
    return _joined(pad, last, own)


def _joined(pad: Node, last: Node, own: tuple[int, ...]) -> Fusion:
    attributes = {**last.attributes, "pads": _sums(pad, own, len(own) // 2)}
    return fused(last, last.op, (pad.inputs[0], *last.inputs[1:]), (pad, last), **attributes)


def _sums(pad: Node, own: tuple[int, ...], spatial: int) -> tuple[int, ...]:
    flat = pad.attributes["pads"]
    begin, end = flat[2 : 2 + spatial], flat[4 + spatial :]
    return tuple(a + b for a, b in zip(own, (*begin, *end), strict=True))


def _is_zero_padding(pad: Node, spatial: int) -> bool:
    return not pad.attributes.get("value", 0) and _is_over_space(pad, spatial)


def _is_over_space(pad: Node, spatial: int) -> bool:
    attributes = pad.attributes
    flat, rank = attributes.get("pads", ()), 2 + spatial
    is_constant = attributes.get("mode", "constant") == "constant" and not any(pad.inputs[1:])
    all_axes = "axes" not in attributes and len(flat) == 2 * rank
    return is_constant and all_axes and min(flat) >= 0 and not any((*flat[:2], *flat[rank : rank + 2]))
