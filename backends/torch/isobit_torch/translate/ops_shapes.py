"""Rules of the vocabulary for what only moves or repeats values."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx

from isobit_torch.program.fx_nodes import SHAPE
from isobit_torch.translate.rule import Arguments, Rule, rank

_END = (1 << 63) - 1


def _reshape(node: fx.Node, a: Arguments) -> Any:
    """The target follows from the output's shape; the native call knows what is dynamic in it."""
    source, shape = a["self"], node.meta[SHAPE]
    if shape is None:
        return None
    if source.meta[SHAPE] == shape and all(n is not None for n in shape):
        return "Identity", (source,)
    return "Reshape", (source,), {"shape": tuple(n if isinstance(n, int) else -1 for n in shape)}


def _transpose(node: fx.Node, a: Arguments) -> Any:
    count = rank(a["self"])
    order = list(range(count))
    if "dims" in a:
        order = [axis % count for axis in a["dims"]]
    elif count >= 2:
        first, second = (a.get(name, default) for name, default in (("dim0", -2), ("dim1", -1)))
        first, second = first % count, second % count
        order[first], order[second] = order[second], order[first]
    return "Transpose", (a["self"],), {"perm": tuple(order)}


def _expand(node: fx.Node, a: Arguments) -> Any:
    source, shape = a["self"], node.meta[SHAPE]
    if shape is None:
        return None
    if source.meta[SHAPE] == shape and all(n is not None for n in shape):
        return "Identity", (source,)
    return "Expand", (source,), {"shape": tuple(n if isinstance(n, int) else -1 for n in shape)}


def _repeat(node: fx.Node, a: Arguments) -> Any:
    if len(a["repeats"]) != rank(a["self"]):
        return None
    return "Tile", (a["self"],), {"repeats": tuple(n if isinstance(n, int) else -1 for n in a["repeats"])}


def _flip(node: fx.Node, a: Arguments) -> Any:
    axes = tuple(axis % rank(a["self"]) for axis in a["dims"])
    count = len(axes)
    return (
        "Slice",
        (a["self"],),
        {"starts": (-1,) * count, "ends": (-_END,) * count, "axes": axes, "steps": (-1,) * count},
    )


def _slice(node: fx.Node, a: Arguments) -> Any:
    start, end, step = a["start"] or 0, _END if a["end"] is None else a["end"], a["step"]
    source = a["self"]
    if start == 0 and step == 1 and (end == _END or source.meta[SHAPE] == node.meta[SHAPE]):
        return "Identity", (source,)
    settings = {"starts": start, "ends": end, "axes": a["dim"] % rank(source), "steps": step}
    return "Slice", (source,), {key: (n,) for key, n in settings.items() if not isinstance(n, fx.Node)}


def _select(node: fx.Node, a: Arguments) -> Any:
    if isinstance(a["index"], fx.Node):
        return None
    return "Gather", (a["self"], np.asarray(a["index"], np.int64)), {"axis": a["dim"] % rank(a["self"])}


def _split(node: fx.Node, a: Arguments) -> Any:
    source = a["self"]
    axis = a["dim"] % rank(source)
    sizes = a.get("split_sizes", a.get("split_size"))
    total = source.meta[SHAPE][axis]
    if isinstance(sizes, int) and isinstance(total, int):
        whole, rest = divmod(total, sizes)
        sizes = [sizes] * whole + ([rest] if rest else [])
    if not isinstance(sizes, list | tuple) or any(not isinstance(n, int) for n in sizes):
        return None
    return "Split", (source,), {"axis": axis, "split": tuple(sizes)}


def _cat(node: fx.Node, a: Arguments) -> Any:
    return "Concat", tuple(a["tensors"]), {"axis": a["dim"] % rank(node)}


def _pad(node: fx.Node, a: Arguments) -> Any:
    if any(isinstance(n, fx.Node) for n in a["pad"]):
        return None
    mode = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}[
        a.get("mode", "constant")
    ]
    count = rank(a["self"])
    begin, end = [0] * count, [0] * count
    for position in range(len(a["pad"]) // 2):
        begin[-1 - position], end[-1 - position] = a["pad"][2 * position], a["pad"][2 * position + 1]
    if not any((*begin, *end)):
        return "Identity", (a["self"],)
    attributes: dict[str, Any] = {"pads": (*begin, *end), "mode": mode}
    if mode == "constant" and a.get("value"):
        attributes["value"] = float(a["value"])
    return "Pad", (a["self"],), attributes


SHAPE_RULES: dict[str, Rule] = {
    **dict.fromkeys(
        ("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as"),
        _reshape,
    ),
    **dict.fromkeys(("transpose", "permute", "t", "numpy_T", "mT"), _transpose),
    "flip": _flip,
    **dict.fromkeys(("expand", "expand_as", "broadcast_to"), _expand),
    "repeat": _repeat,
    "slice": _slice,
    "select": _select,
    **dict.fromkeys(("split", "split_with_sizes"), _split),
    **dict.fromkeys(("cat", "concat"), _cat),
    **dict.fromkeys(("pad", "constant_pad_nd"), _pad),
}
