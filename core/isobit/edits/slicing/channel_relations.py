"""What one node says of the channels around it: which go together, and which cannot go."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from isobit.graph.graph import Graph, Node, Shape

Indices = NDArray[np.int64]


class Slot(NamedTuple):
    """One axis of a tensor or a constant, counted from the front."""

    name: str
    axis: int


@dataclass(frozen=True, eq=False)
class Tie:
    """Index ``first_at[i]`` of one slot goes with index ``second_at[i]`` of the other; None: all of them, in order."""

    first: Slot
    second: Slot
    first_at: Indices | None = None
    second_at: Indices | None = None


@dataclass(frozen=True, eq=False)
class Fixed:
    """Indices of a slot that must stay, and why; None: all of them."""

    slot: Slot
    reason: str
    at: Indices | None = None


Relation = Tie | Fixed


class Sizes:
    """The shapes around a node: of its tensors and its constants alike."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def shape(self, name: str | None) -> Shape | None:
        """The shape of a tensor or a constant, None where it is unknown or left out."""
        if name is None:
            return None
        if name in self.graph.weights:
            return self.graph.weights[name].shape
        return self.graph.tensors[name].shape if name in self.graph.tensors else None

    def size(self, slot: Slot) -> int | None:
        """How many indices a slot has, None where that is open."""
        shape = self.shape(slot.name)
        size = shape[slot.axis] if shape is not None and slot.axis < len(shape) else None
        return size if isinstance(size, int) else None

    def slots(self, node: Node) -> Iterator[Slot]:
        """Every axis of known size, of everything that a node reads or makes."""
        for name in dict.fromkeys((*node.inputs, *node.outputs)):
            for axis, size in enumerate(self.shape(name) or ()):
                if name is not None and isinstance(size, int):
                    yield Slot(name, axis)


def named(node: Node) -> str:
    """A node as messages name it."""
    return f"node {node.name!r} ({node.op})"
