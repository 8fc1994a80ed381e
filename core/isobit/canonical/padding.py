"""Zero padding in front of a convolution is the convolution's own: runtimes fuse the two."""

from __future__ import annotations

from isobit.canonical.matching import Fusion, fuse, fused, producer_of
from isobit.graph.graph import Graph, Node


def absorb_padding(graph: Graph) -> Graph:
    """A Pad with zeros, over space alone, that a Conv is the only reader of, moves into the Conv's ``pads``."""
    return fuse(graph, _padded_conv)


def _padded_conv(graph: Graph, last: Node) -> Fusion | None:
    if last.op != "Conv" or "pads" not in last.attributes:
        return None
    pad = producer_of(graph, last.input(0), "Pad")
    own = last.attributes["pads"]
    spatial = len(own) // 2
    if pad is None or not _is_zero_padding(pad, spatial):
        return None
    flat = pad.attributes["pads"]
    begin, end = flat[2 : 2 + spatial], flat[4 + spatial :]
    pads = tuple(a + b for a, b in zip(own, (*begin, *end), strict=True))
    attributes = {**last.attributes, "pads": pads}
    return fused(last, "Conv", (pad.inputs[0], *last.inputs[1:]), (pad, last), **attributes)


def _is_zero_padding(pad: Node, spatial: int) -> bool:
    attributes = pad.attributes
    flat = attributes.get("pads", ())
    zeros = (
        attributes.get("mode", "constant") == "constant" and not attributes.get("value", 0) and not any(pad.inputs[1:])
    )
    all_axes = "axes" not in attributes and len(flat) == 2 * (2 + spatial)
    rank = 2 + spatial
    return zeros and all_axes and min(flat) >= 0 and not any((*flat[:2], *flat[rank : rank + 2]))
