"""A graph without the nodes that only move values: exporters add and drop transposes and reshapes freely."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from isobit.graph.graph import Graph, Node
from isobit.graph.isomorphism import attribute_text
from isobit.graph.ops import operand

#: Ops whose output holds the values of their one input tensor and nothing else.
MOVERS = frozenset({"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"})

COMMUTATIVE = frozenset({"Add", "Mul", "Max", "Min", "Sum", "Mean", "And", "Or", "Xor", "Equal"})

#: Attributes that depend on the order of axes, which differs between frameworks.
_OF_LAYOUT = frozenset({"axis", "axes", "perm", "shape", "keepdims"})


@dataclass(frozen=True)
class Reader:
    """A node that reads a value, and at which input."""

    node: str
    index: int


class Skeleton:
    """The nodes that compute, joined by values; a value is a tensor together with all that only move it.

    A value is named by its root: a model input, or a tensor that a computing node makes. `classes` says which constants
    hold the same (`content_classes`).
    """

    def __init__(self, graph: Graph, classes: Mapping[str, str]) -> None:
        self.graph = graph
        self.classes = classes
        self.root: dict[str, str] = {name: name for name in graph.inputs}
        self.movers: dict[str, list[Node]] = {}  # by root
        self.readers: dict[str, list[Reader]] = {}  # by root
        self.nodes: dict[str, Node] = {}
        self._own: dict[tuple[str, bool], str] = {}
        for node in graph.nodes:
            self._add(node)

    def _add(self, node: Node) -> None:
        source = node.input(0)
        if node.op in MOVERS and source in self.root and len(node.outputs) == 1:
            root = self.root[source or ""]
            self.root[node.outputs[0]] = root
            self.movers.setdefault(root, []).append(node)
            return
        self.nodes[node.name] = node
        for index, root in self.operands(node).items():
            self.readers.setdefault(root, []).append(Reader(node.name, index))
        self.root.update((tensor, tensor) for tensor in node.outputs)

    def operands(self, node: Node) -> dict[int, str]:
        """The values that a node reads, by input index."""
        return {index: self.root[name] for index, name in enumerate(node.inputs) if name in self.root and name}

    def producer(self, root: str) -> Node | None:
        """The node that makes a value; None for a model input."""
        return self.graph.producer(root)

    @cached_property
    def output_roots(self) -> frozenset[str]:
        """Values that leave the model."""
        return frozenset(self.root[name] for name in self.graph.outputs.values() if name in self.root)

    def own(self, node: Node, *, strict: bool) -> str:
        """What a node is by itself: op, attributes and the content of its constants; weights alone unless `strict`."""
        key = node.name, strict
        if key not in self._own:
            self._own[key] = self._describe(node, strict)
        return self._own[key]

    def _describe(self, node: Node, strict: bool) -> str:
        constants = [
            f"{index}:{self.classes[name]}"
            for index, name in enumerate(node.inputs)
            if name in self.classes and name and (strict or is_anchor(node.op, index))
        ]
        attributes = [
            f"{key}={attribute_text(value)}"
            for key, value in sorted(node.attributes.items())
            if key not in _OF_LAYOUT or strict
        ]
        return digest((node.op, *constants, *attributes))

    def forward(self, *, strict: bool) -> dict[str, str]:
        """By value: a hash of all that it is computed from."""
        hashes = {
            name: digest((info.dtype, str(sorted(map(str, (info.shape or ())[1:])))))
            for name in self.graph.inputs
            for info in [self.graph.tensors[name]]
        }
        for node in self.nodes.values():
            inputs = [hashes[root] for root in self.operands(node).values()]
            if node.op in COMMUTATIVE:
                inputs.sort()
            for index, tensor in enumerate(node.outputs):
                hashes[tensor] = digest((self.own(node, strict=strict), *inputs, str(index)))
        return hashes

    def backward(self, *, strict: bool) -> dict[str, str]:
        """By node: a hash of all that is computed from it."""
        hashes: dict[str, str] = {}
        for node in reversed(self.nodes.values()):
            uses = []
            for output, tensor in enumerate(node.outputs):
                leaves = tensor in self.output_roots
                uses += [f"{output}:{self.place(r)}:{hashes[r.node]}" for r in self.readers.get(tensor, ())]
                uses += [f"{output}:out"] if leaves else []
            hashes[node.name] = digest((self.own(node, strict=strict), *sorted(uses)))
        return hashes

    def place(self, reader: Reader) -> int:
        """The input of a reader; all of a commutative node's count as one."""
        return 0 if self.nodes[reader.node].op in COMMUTATIVE else reader.index


def is_anchor(op: str, index: int) -> bool:
    """Whether a constant there tells similar layers apart: a weight does, a bias or a factor need not."""
    role = operand(op, index)
    return role is not None and role.role in ("weight", "recurrent_weight")


def digest(parts: Iterable[str]) -> str:
    """One hash of several texts."""
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()
