"""Following removed channels through the graph: the lowering of the `Slice` edit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from isobit.edits.edit import NewNode, Slice
from isobit.edits.workspace import Workspace
from isobit.errors import EditError
from isobit.graph.graph import Node
from isobit.graph.ops import BROADCAST, UNARY

_POOLS = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Resize"})
_ACROSS_CHANNELS = frozenset(
    "Softmax LogSoftmax Hardmax LayerNormalization RMSNormalization GroupNormalization LpNormalization LRN "
    "CumSum".split()
)
_GROUPED = "node {!r} is a grouped convolution: its channels cannot be removed one by one"

Kept = NDArray[np.int64]


def slice_channels(workspace: Workspace, edit: Slice) -> None:
    """Slice every constant and neighbour that shares the channels of a tensor; EditError names what blocks it."""
    graph = workspace.graph
    info = graph.tensors.get(edit.tensor)
    if info is None or info.shape is None or info.channel_axis is None:
        raise EditError(f"tensor {edit.tensor!r} is not in the graph, or its channels are unknown")
    count = info.shape[info.channel_axis]
    keep = np.asarray(sorted(set(edit.keep)), np.int64)
    if not isinstance(count, int) or keep.size == 0 or keep[0] < 0 or keep[-1] >= count:
        raise EditError(f"channels to keep of {edit.tensor!r} must be some of its {count} channels, not {edit.keep}")
    Slicer(workspace).run(edit.tensor, keep)


class Slicer:
    """One slice spreading over the graph: tensors and the channels they keep, until nothing new is reached."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.kept: dict[str, Kept] = {}
        self.sliced: dict[tuple[str, int], Kept] = {}
        self.groups: dict[str, int] = {}
        self._queue: list[str] = []

    def run(self, tensor: str, keep: Kept) -> None:
        """Collect everything first, so that a refusal leaves the workspace as it was; then write."""
        self._reach(tensor, keep)
        while self._queue:
            name = self._queue.pop()
            producer = self.workspace.graph.producer(name)
            if producer is None:
                raise EditError(f"the channels of model input {name!r} cannot be removed")
            if name in self.workspace.graph.output_tensors:
                raise EditError(f"the channels of model output {name!r} cannot be removed")
            self._backward(producer, self.kept[name])
            for use in self.workspace.graph.uses(name):
                self._forward(use.node, use.index, self.kept[name])
        for (weight, axis), channels in self.sliced.items():
            self.workspace.set_value(weight, np.take(self.workspace.value(weight), channels, axis))
        for name, group in self.groups.items():
            node = self.workspace.graph.node(name)
            attributes = {**node.attributes, "group": group}
            self.workspace.replace_node(node, (NewNode(node.op, node.inputs[1:], attributes),), {})
        self._reshapes()

    def _reach(self, tensor: str, keep: Kept) -> None:
        reached = self.kept.get(tensor)
        if reached is None:
            self.kept[tensor] = keep
            self._queue.append(tensor)
        elif not np.array_equal(reached, keep):
            raise EditError(f"tensor {tensor!r} would keep two different sets of channels")

    def _cut(self, weight: str | None, axis: int, keep: Kept) -> None:
        if weight is None:
            return
        if weight not in self.workspace.graph.weights:
            raise EditError(f"constant operand {weight!r} is computed, so its channels cannot be removed")
        self.sliced[weight, axis] = keep

    def _backward(self, node: Node, keep: Kept) -> None:
        source = node.input(0)
        if node.op in ("Conv", "ConvTranspose", "Linear"):
            self._cut(node.input(1), 0, keep)
            self._cut(node.input(2), 0, keep)
            if self._is_depthwise(node) and source is not None:
                self.groups[node.name] = len(keep)
                self._reach(source, keep)
            elif int(node.attributes.get("group", 1)) != 1:
                raise EditError(_GROUPED.format(node.name))
        elif node.op in UNARY or node.op in _POOLS:
            self._elementwise(node, keep)
        elif node.op in BROADCAST:
            self._broadcast(node, keep)
        elif node.op == "Reshape" and source is not None:
            self._reach(source, self._unflatten(node, keep))
        else:
            raise EditError(f"node {node.name!r} ({node.op}) blocks the removal of channels")

    def _forward(self, node: Node, index: int, keep: Kept) -> None:
        if node.op in ("Conv", "ConvTranspose") and index == 0:
            if self._is_depthwise(node):
                self._reach(node.outputs[0], keep)
            elif int(node.attributes.get("group", 1)) == 1:
                self._cut(node.input(1), 1, keep)
            else:
                raise EditError(_GROUPED.format(node.name))
        elif node.op == "Linear" and index == 0:
            self._cut(node.input(1), 1, keep)
        elif node.op in UNARY or node.op in _POOLS or node.op in BROADCAST:
            self._reach(node.outputs[0], keep)
        elif node.op == "Reshape":
            self._reach(node.outputs[0], self._flatten(node, keep))
        else:
            raise EditError(f"node {node.name!r} ({node.op}) blocks the removal of channels")

    def _elementwise(self, node: Node, keep: Kept) -> None:
        if node.op in _ACROSS_CHANNELS:
            raise EditError(f"node {node.name!r} ({node.op}) mixes channels, so none can be removed before it")
        for name in node.inputs[1:]:
            if name is not None and self.workspace.value(name).shape[:1] not in ((), (1,)):
                self._cut(name, 0, keep)
        source = node.input(0)
        if source is not None:
            self._reach(source, keep)

    def _broadcast(self, node: Node, keep: Kept) -> None:
        info = self.workspace.graph.tensors[node.outputs[0]]
        rank, axis = info.rank or 0, info.channel_axis or 0
        for name in node.inputs:
            if name is not None and name in self.workspace.graph.tensors:
                if self._has_channels(name, axis - rank):
                    self._reach(name, keep)
            elif name is not None:
                own = axis - (rank - len(self.workspace.graph.weights[name].shape))
                if own >= 0 and self.workspace.graph.weights[name].shape[own] != 1:
                    self._cut(name, own, keep)

    def _has_channels(self, tensor: str, axis: int) -> bool:
        """Whether a tensor has the channels on `axis`, counted from the end, and does not broadcast over them."""
        shape = self.workspace.graph.tensors[tensor].shape
        if shape is None:
            raise EditError(f"the shape of tensor {tensor!r} is unknown, so its channels cannot be removed")
        return -axis <= len(shape) and shape[axis] != 1

    def _is_depthwise(self, node: Node) -> bool:
        group = int(node.attributes.get("group", 1))
        weight = node.input(1)
        return group > 1 and weight is not None and self.workspace.graph.weights[weight].shape[:2] == (group, 1)

    def _inner(self, node: Node) -> int:
        """How many positions each channel has behind a reshape of (batch, channels, ...) to (batch, features)."""
        source = self.workspace.graph.tensors[node.inputs[0] or ""].shape
        target = self.workspace.graph.tensors[node.outputs[0]].shape
        channels_first = self.workspace.graph.tensors[node.inputs[0] or ""].channel_axis in (None, 1)
        whole = source is not None and target is not None and len(target) == 2 and channels_first
        if source is None or not whole or not all(isinstance(n, int) for n in source[1:]):
            raise EditError(f"node {node.name!r} (Reshape) blocks the removal of channels: it is no flattening")
        return int(np.prod([n for n in source[2:] if isinstance(n, int)], dtype=np.int64))

    def _flatten(self, node: Node, keep: Kept) -> Kept:
        inner = self._inner(node)
        return (keep[:, None] * inner + np.arange(inner)).reshape(-1)

    def _unflatten(self, node: Node, keep: Kept) -> Kept:
        inner = self._inner(node)
        channels = keep[::inner] // inner
        if not np.array_equal(self._flatten(node, channels), keep):
            raise EditError(f"node {node.name!r} (Reshape): only whole channels can be removed before it")
        return channels

    def _reshapes(self) -> None:
        """A Reshape whose target named the old size names the new one."""
        for node in self.workspace.graph.nodes:
            if node.op != "Reshape" or node.outputs[0] not in self.kept or "shape" not in node.attributes:
                continue
            target = list(node.attributes["shape"])
            target[1] = len(self.kept[node.outputs[0]])
            attributes = {**node.attributes, "shape": tuple(target)}
            self.workspace.replace_node(node, (NewNode("Reshape", (), attributes),), {})
