"""Attributes that count channels, for the channels that are left."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from isobit.edits.slicing.channel_relations import Indices, Sizes, Slot
from isobit.edits.slicing.moved_channels import taken
from isobit.graph.graph import Node

#: Which indices an axis keeps.
Kept = Callable[[Slot], Indices]


def changed_attributes(sizes: Sizes, node: Node, kept: Kept) -> dict[str, Any] | None:
    """The attributes of a node whose inputs or outputs lose channels; None where they stay as they are."""
    rule = _CHANGES.get(node.op)
    new = {**node.attributes, **rule(sizes, node, kept)} if rule is not None else node.attributes
    return None if dict(new) == dict(node.attributes) else dict(new)


def _groups(sizes: Sizes, node: Node, kept: Kept) -> Mapping[str, Any]:
    """A depthwise layer has as many groups as channels."""
    weight = sizes.shape(node.input(1)) or ()
    if int(node.attributes.get("group", 1)) == 1 or weight[1] != 1:
        return {}
    return {"group": len(kept(Slot(node.inputs[0] or "", 1)))}


def _target(key: str) -> Callable[[Sizes, Node, Kept], Mapping[str, Any]]:
    """The shape that a node is told to make."""

    def change(sizes: Sizes, node: Node, kept: Kept) -> Mapping[str, Any]:
        target = node.attributes.get(key)
        if not target:
            return {}
        result = node.outputs[0]
        counted = {axis for axis, n in enumerate(target) if n > 0 and sizes.size(Slot(result, axis)) == n}
        return {key: tuple(len(kept(Slot(result, axis))) if axis in counted else n for axis, n in enumerate(target))}

    return change


def _cut(sizes: Sizes, node: Node, kept: Kept) -> Mapping[str, Any]:
    """Where a Slice begins and ends among the channels that are left."""
    source, rank = node.inputs[0] or "", len(sizes.shape(node.inputs[0]) or ())
    starts, ends = list(node.attributes["starts"]), list(node.attributes["ends"])
    for place, axis in enumerate(node.attributes["axes"]):
        slot = Slot(source, axis % rank)
        size = sizes.size(slot)
        if size is not None and len(left := kept(slot)) != size:
            chosen = np.flatnonzero(np.isin(left, taken(node, place, size)))
            starts[place], ends[place] = int(chosen[0]), int(chosen[-1]) + 1
    return {"starts": tuple(starts), "ends": tuple(ends)}


def _parts(sizes: Sizes, node: Node, kept: Kept) -> Mapping[str, Any]:
    axis = int(node.attributes["axis"])
    return {"split": tuple(len(kept(Slot(part, axis))) for part in node.outputs)}


_CHANGES: Mapping[str, Callable[[Sizes, Node, Kept], Mapping[str, Any]]] = {
    "Conv": _groups,
    "ConvTranspose": _groups,
    "Reshape": _target("shape"),
    "Expand": _target("shape"),
    "Resize": _target("sizes"),
    "Slice": _cut,
    "Split": _parts,
}
