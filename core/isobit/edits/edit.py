"""The edits of a network, as values, and what a checked list of them comes to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from isobit.graph.graph import Graph, Node
from isobit.graph.ops import WEIGHTED
from isobit.graph.sites import Input, Tensor

Array = NDArray[Any]
ReadWeight = Callable[[str], Array]


@dataclass(frozen=True, eq=False)
class NewNode:
    """A node to create: it reads the previous node of its chain at input 0 and the named constants after it."""

    op: str
    operands: tuple[str | None, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Replace:
    """Put the chain `nodes` in place of a node; an empty chain splices it out. `weights` are new constants."""

    node: str
    nodes: tuple[NewNode, ...] = ()
    weights: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Insert:
    """Put the chain `nodes` behind a tensor, for all its readers, or before one input of one node."""

    site: Tensor | Input
    nodes: tuple[NewNode, ...]
    weights: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class SetWeights:
    """Give constants new values, in canonical layout; shapes may change where the graph allows it.

    `compensates`: the change only makes up for what quantization does, and the float model is the one without it.
    """

    weights: Mapping[str, Array]
    compensates: bool = False


@dataclass(frozen=True, eq=False)
class TrainedWeights:
    """Note the values that training has given constants, in every layout; what compensates in them still does."""

    weights: Mapping[str, Array]


@dataclass(frozen=True, eq=False)
class AddBias:
    """Give a Conv, ConvTranspose or Linear without a bias this one, one value an output channel.

    `compensates` as that of `SetWeights`.
    """

    node: str
    value: Array
    compensates: bool = False


@dataclass(frozen=True)
class Unshare:
    """Give one reader of a shared constant a copy of its own, named ``<weight>@<node>``."""

    weight: str
    node: str


@dataclass(frozen=True, eq=False)
class Slice:
    """Keep only the channels `keep` of a tensor, and follow them through the graph."""

    tensor: str
    keep: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class SliceTogether:
    """Several slices at once, each counted on the graph before all of them; a channel stays that none of them drops.

    One after the other is not the same: a convolution in groups that one slice leaves a single input in each of them is
    a depthwise one to the next, whose outputs go with its inputs.
    """

    slices: tuple[Slice, ...]


Edit = Replace | Insert | SetWeights | TrainedWeights | AddBias | Unshare | Slice | SliceTogether


def places_of(edit: Edit) -> tuple[str, ...]:
    """The names of what an edit changes: a node, a site, tensors or weights."""
    if isinstance(edit, Replace | AddBias | Unshare):
        return (edit.node,)
    if isinstance(edit, Insert):
        return (str(edit.site),)
    if isinstance(edit, SliceTogether):
        return tuple(part.tensor for part in edit.slices)
    return (edit.tensor,) if isinstance(edit, Slice) else tuple(edit.weights)


def changes_float_model(edit: Edit) -> bool:
    """Whether an edit makes another float model: it does not where it compensates for quantization, or copies alone."""
    return not isinstance(edit, Unshare) and not (isinstance(edit, SetWeights | AddBias) and edit.compensates)


@dataclass(frozen=True, eq=False)
class Replaced:
    """`nodes` stand where `old` stood; their last output takes the place of old's."""

    old: Node
    nodes: tuple[Node, ...]


@dataclass(frozen=True)
class Removed:
    """A node that an edit removed, what it was, the tensor that it made, and the one that stands in its place now."""

    node: str
    op: str
    tensor: str
    now: str


@dataclass(frozen=True, eq=False)
class Inserted:
    """`nodes` stand behind the tensor, or before the input, of `site`."""

    site: Tensor | Input
    nodes: tuple[Node, ...]


@dataclass(frozen=True, eq=False)
class Resized:
    """`new` is `old` with other sizes among its attributes: the same inputs and outputs, however many."""

    old: Node
    new: Node


Step = Replaced | Inserted | Resized


@dataclass(frozen=True, eq=False)
class EditPlan:
    """Checked edits: `steps` in order, then `weights`, every constant that is new or has a new value (canonical)."""

    graph: Graph
    steps: tuple[Step, ...]
    weights: Mapping[str, Array]

    def removed(self, before: Graph) -> list[Removed]:
        """The nodes in whose place nothing stands, in the order of the edits; `before` is the graph as it was."""
        gone = []
        for step in self.steps:
            if isinstance(step, Replaced) and not step.nodes:
                old = step.old
                read = (name for name in old.inputs if name is not None)
                source = next((name for name in read if name not in before.weights and name not in self.weights), None)
                if source is not None:
                    gone.append(Removed(old.name, old.op, old.outputs[0], source))
        return gone

    def keeps_shapes(self, before: Graph) -> bool:
        """Whether nothing but known constants change, none its shape, and no integers, which may be sizes."""
        values = [(value, before.weights.get(name)) for name, value in self.weights.items()]
        same = all(info is not None and value.shape == info.shape and value.dtype.kind == "f" for value, info in values)
        return same and not self.steps

    def changes_layers_alone(self, before: Graph) -> bool:
        """Whether nothing but values of weights and biases of layers change, which no rule of reading looks at."""

        def of_layers(name: str) -> bool:
            uses = before.uses(name)
            readers = {use.node.name for use in uses}
            return readers == before.source_readers(name) and all(u.node.op in WEIGHTED and u.index > 0 for u in uses)

        return self.keeps_shapes(before) and all(of_layers(name) for name in self.weights)
