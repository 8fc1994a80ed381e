"""The neutral graph: nodes in ONNX vocabulary, tensors, and constants in canonical layout. Read only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isobit.errors import ModelError, did_you_mean
from isobit.graph.layout import Layout
from isobit.graph.ops import operand
from isobit.graph.sites import Input, Site, Tensor

Dimension = int | str | None
Shape = tuple[Dimension, ...]

#: Constants of at most this many elements carry their value in the graph, for pattern matching.
SMALL = 64

#: Columns of a printed graph are padded to at most this many characters.
WIDEST = 48


@dataclass(frozen=True)
class TensorInfo:
    """An activation: shape (None where unknown, axis 0 is the batch), element type, and the axis of its channels."""

    shape: Shape | None
    dtype: str = "float32"
    channel_axis: int | None = None

    @property
    def rank(self) -> int | None:
        """Number of axes, or None where the shape is unknown."""
        return None if self.shape is None else len(self.shape)


@dataclass(frozen=True, eq=False)
class WeightInfo:
    """A constant: canonical shape, element type, value if small, and how the native array `source` becomes it.

    `magnitude` is the largest absolute value of a float constant, NaN where it holds NaN; None where nobody looked.
    Of a part of a large constant it is that of the whole.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    value: NDArray[Any] | None = None
    source: str = ""
    layout: Layout = ()
    magnitude: float | None = None

    @classmethod
    def of(cls, array: NDArray[Any], name: str, dtype: str | None = None) -> WeightInfo:
        """What the graph says of the native constant `name`."""
        real = array.dtype.kind == "f" and array.size > 0
        # max and min separately: an array of absolute values would double the memory of a large weight
        magnitude = max(float(array.max()), -float(array.min())) if real else None
        return cls(array.shape, dtype or str(array.dtype), small_value(array), name, (), magnitude)

    @property
    def is_float(self) -> bool:
        """Whether it holds real numbers; the others are indices, shapes and flags."""
        return self.dtype.startswith(("float", "bfloat"))


@dataclass(frozen=True, eq=False)
class Node:
    """An operation. `inputs` names tensors or weights (None: left out); `parts` are the native nodes it covers."""

    name: str
    op: str
    inputs: tuple[str | None, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    parts: tuple[str, ...] = ()

    def input(self, index: int) -> str | None:
        """The name at input `index`, None where it is absent."""
        return self.inputs[index] if index < len(self.inputs) else None

    def __repr__(self) -> str:
        return f"{self.op}({self.name}: {', '.join(str(i) for i in self.inputs)})"


@dataclass(frozen=True)
class Use:
    """One reader of a tensor or weight: input `index` of `node`."""

    node: Node
    index: int

    @property
    def role(self) -> str:
        """``weight``, ``bias`` and so on for a constant operand, else ``data``."""
        constant = operand(self.node.op, self.index)
        return constant.role if constant else "data"


#: Properties of a graph that follow from its nodes alone.
_OF_NODES = frozenset({"_nodes", "_producers", "_uses"})


@dataclass(frozen=True, eq=False)
class Graph:
    """A network as the core sees it; nodes are in execution order.

    `outputs` maps the model's output names to tensors. Names of tensors, weights and nodes are unique.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: Mapping[str, str]
    tensors: Mapping[str, TensorInfo]
    weights: Mapping[str, WeightInfo]
    notes: tuple[str, ...] = ()  # what the backend left in float, and why

    def __post_init__(self) -> None:
        for name in ("outputs", "tensors", "weights"):
            mapping = getattr(self, name)
            if not isinstance(mapping, MappingProxyType):  # a mapping that another graph has frozen is shared
                object.__setattr__(self, name, MappingProxyType(dict(mapping)))

    def __repr__(self) -> str:
        return f"<Graph of {len(self.nodes)} nodes: {', '.join(self.inputs)} -> {', '.join(self.outputs)}>"

    def __str__(self) -> str:
        """The whole graph for a person: inputs, a line for each node in execution order, constants, outputs, notes."""
        rows: dict[str, Sequence[Sequence[str]]] = {
            "inputs": [(name, _typed(self.tensors.get(name))) for name in self.inputs],
            "nodes": [self._row(node) for node in self.nodes],
            "constants": [(name, _typed(info)) for name, info in self.weights.items()],
            "outputs": [(name, f"= {tensor}") for name, tensor in self.outputs.items()],
            "notes": [(note,) for note in self.notes],
        }
        return "\n".join(line for title, table in rows.items() if table for line in (title, *_aligned(table)))

    def _row(self, node: Node) -> tuple[str, ...]:
        """Name, op, inputs, outputs with their types, and attributes; an output is not named where the node is."""
        inputs = ", ".join("-" if name is None else name for name in node.inputs)
        types = [(name, _typed(self.tensors.get(name))) for name in node.outputs]
        outputs = ", ".join(kind if name == node.name else f"{name}: {kind}" for name, kind in types)
        attributes = " ".join(f"{key}={_value_text(value)}" for key, value in node.attributes.items())
        return node.name, node.op, f"({inputs})", f"-> {outputs}", attributes

    @cached_property
    def _nodes(self) -> dict[str, Node]:
        return {node.name: node for node in self.nodes}

    @cached_property
    def _producers(self) -> dict[str, Node]:
        return {tensor: node for node in self.nodes for tensor in node.outputs}

    @cached_property
    def _uses(self) -> dict[str, tuple[Use, ...]]:
        uses: dict[str, list[Use]] = {}
        for node in self.nodes:
            for index, name in enumerate(node.inputs):
                if name is not None:
                    uses.setdefault(name, []).append(Use(node, index))
        return {name: tuple(readers) for name, readers in uses.items()}

    @cached_property
    def _views(self) -> dict[str, tuple[str, ...]]:
        views: dict[str, list[str]] = {}
        for name, info in self.weights.items():
            views.setdefault(info.source or name, []).append(name)
        return {source: tuple(names) for source, names in views.items()}

    @cached_property
    def output_tensors(self) -> frozenset[str]:
        """Tensors that leave the model."""
        return frozenset(self.outputs.values())

    def node(self, name: str) -> Node:
        """The node of that name; ModelError if there is none."""
        if name not in self._nodes:
            raise ModelError(f"no node {name!r} in the graph{did_you_mean(name, self._nodes)}")
        return self._nodes[name]

    def is_taken(self, name: str) -> bool:
        """Whether a node, a tensor or a weight has that name."""
        return name in self._nodes or name in self.tensors or name in self.weights

    def producer(self, tensor: str) -> Node | None:
        """The node that computes a tensor; None for the model's inputs."""
        return self._producers.get(tensor)

    def uses(self, name: str) -> tuple[Use, ...]:
        """Every reader of a tensor or weight, in execution order."""
        return self._uses.get(name, ())

    def before(self, tensors: Iterable[str]) -> frozenset[str]:
        """Names of the nodes that these tensors are computed from."""
        nodes: set[str] = set()
        waiting = list(tensors)
        while waiting:
            node = self.producer(waiting.pop())
            if node is not None and node.name not in nodes:
                nodes.add(node.name)
                waiting += [name for name in node.inputs if name is not None]
        return frozenset(nodes)

    def source_readers(self, weight: str) -> frozenset[str]:
        """Names of the nodes that read a constant, under this name or through another view of the same native array."""
        return frozenset(use.node.name for name in self.views(weight) for use in self.uses(name))

    def views(self, weight: str) -> tuple[str, ...]:
        """All names under which the native array of a constant is read, this one among them."""
        return self._views[self.weights[weight].source or weight]

    def sole_reader(self, tensor: str) -> Use | None:
        """The only reader of a tensor that does not leave the model, else None."""
        uses = self.uses(tensor)
        return uses[0] if len(uses) == 1 and tensor not in self.output_tensors else None

    def has_site(self, site: Site) -> bool:
        """Whether the graph has the place that a site names."""
        if isinstance(site, Input):
            node = self._nodes.get(site.node)
            return node is not None and node.input(site.index) is not None
        return site.name in (self.tensors if isinstance(site, Tensor) else self.weights)

    def is_float(self, name: str) -> bool:
        """Whether a tensor or weight holds real numbers."""
        info = self.tensors.get(name) or self.weights[name]
        return info.dtype.startswith(("float", "bfloat"))

    def value(self, name: str | None) -> NDArray[Any] | None:
        """The value of a small constant, or None."""
        if name is None or name not in self.weights:
            return None
        return self.weights[name].value

    def with_weight(self, name: str, info: WeightInfo) -> Graph:
        """A copy that has a weight, new or in place of the old one of that name."""
        graph = replace(self, weights={**self.weights, name: info})
        # The nodes are the same, so look-ups among them stay valid.
        graph.__dict__.update((key, self.__dict__[key]) for key in _OF_NODES & self.__dict__.keys())
        return graph

    def with_nodes(self, nodes: tuple[Node, ...], **changes: Any) -> Graph:
        """A copy with other nodes, without the tensors and weights that nothing names any more."""
        graph = replace(self, nodes=nodes, **changes)
        used = {name for node in nodes for name in (*node.inputs, *node.outputs) if name is not None}
        used.update(graph.inputs, graph.outputs.values())
        return replace(
            graph,
            tensors={name: info for name, info in graph.tensors.items() if name in used},
            weights={name: info for name, info in graph.weights.items() if name in used},
        )


def small_value(array: NDArray[Any]) -> NDArray[Any] | None:
    """The array if it is small enough to be carried in a graph."""
    return np.array(array) if array.size <= SMALL else None


def _typed(info: TensorInfo | WeightInfo | None) -> str:
    """Element type and shape, ``float32[N, 3, ?]``."""
    if info is None:
        return "unknown"
    shape = "[...]" if info.shape is None else f"[{', '.join('?' if n is None else str(n) for n in info.shape)}]"
    return f"{info.dtype}{shape}"


def _value_text(value: Any) -> str:
    """An attribute's value on one line; of a large array its type and shape alone."""
    if isinstance(value, np.ndarray) and value.size > 8:
        return f"{value.dtype}{list(value.shape)}"
    return " ".join((repr(value.tolist()) if isinstance(value, np.ndarray) else str(value)).split())


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """Lines of columns one under the other; a cell far longer than most of its column moves its own line alone."""
    widths = [min(max(map(len, column)), WIDEST) for column in zip(*table, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table)
    return [f"  {line}".rstrip() for line in lines]
