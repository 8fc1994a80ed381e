"""The graph and its constants while edits are made: values, splicing, and the shapes that follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count, islice
from math import isfinite
from typing import Any

import numpy as np

from isobit.edits.edit import Array, Inserted, NewNode, ReadWeight, Replaced, Resized, Step
from isobit.errors import EditError
from isobit.graph.free_name import free_name
from isobit.graph.graph import Graph, Node, Shape, TensorInfo, WeightInfo
from isobit.graph.layout import Layout
from isobit.graph.shape_inference import ShapeError, infer
from isobit.graph.sites import Input, Tensor


class Workspace:
    """A graph and the values of its constants, changed node by node; `steps` and `values` say what has changed."""

    def __init__(self, graph: Graph, read: ReadWeight) -> None:
        self.graph = graph
        self.steps: list[Step] = []
        self.values: dict[str, Array] = {}
        self._read = read
        self._shapes_before: dict[str, Shape | None] = {}  # by new tensor, the shape of the tensor that it replaces

    def value(self, name: str) -> Array:
        """The current value of a constant, canonical."""
        if name not in self.graph.weights:
            raise EditError(f"no constant {name!r} in the graph")
        return self.values[name] if name in self.values else self._read(name)

    def set_value(self, name: str, value: Array, layout: Layout | None = None) -> None:
        """Give a constant, old or new, a value; float64 and integers become its element type.

        One of another shape is stored in `layout`.
        """
        old = self.graph.weights.get(name)
        dtype = old.dtype if old is not None else "float32"
        array = np.array(value, dtype=dtype, order="C")
        info = WeightInfo.of(array, name, dtype)
        if info.magnitude is not None and not isfinite(info.magnitude):
            raise EditError(f"the new value of {name!r} holds NaN or infinity")
        if old is not None:
            stored = old.layout if layout is None else layout
            info = replace(old, shape=info.shape, value=info.value, magnitude=info.magnitude, layout=stored)
        self.graph = self.graph.with_weight(name, info)
        self.values[name] = array

    def free_name(self, stem: str) -> str:
        """`stem`, or it with a number where the graph has that name already."""
        return free_name(stem, self.graph.weights, self.graph.tensors, separator=".")

    def replace_node(self, old: Node, chain: Sequence[NewNode], weights: Mapping[str, Array]) -> None:
        """Put a chain in place of `old`, in the graph and as a step."""
        self._add_weights(weights)
        source = old.input(0)
        if not chain and source in self.graph.weights:  # where ``constant * x`` is removed, its readers read x
            source = next((name for name in old.inputs if name in self.graph.tensors), source)
        if source is None or len(old.outputs) != 1:
            raise EditError(
                f"node {old.name!r} ({old.op}) has not one data input and one output: it cannot be replaced"
            )
        names = [old.name] if len(chain) == 1 else self._free_names(old.name, len(chain))
        # A single replacement may read several tensors (a copy of a node): it keeps the operands it names.
        nodes = self._chain(source, names, chain, last=old.outputs[0] if len(chain) == 1 else None)
        result = nodes[-1].outputs[0] if nodes else source
        position = self.graph.nodes.index(old)
        self._splice(position, position + 1, nodes, {old.outputs[0]: result}, old.outputs[0])
        self.steps.append(Replaced(old, tuple(nodes)))

    def resize_node(self, old: Node, attributes: Mapping[str, Any]) -> None:
        """Give a node other sizes among its attributes, in the graph and as a step."""
        if len(old.outputs) == 1:  # backends make it anew, whatever native operations it stands for
            self.replace_node(old, (NewNode(old.op, old.inputs[1:], attributes),), {})
            return
        new = replace(old, attributes=dict(attributes))
        self.graph = self.graph.with_nodes(tuple(new if node is old else node for node in self.graph.nodes))
        self.steps.append(Resized(old, new))

    def insert(self, site: Tensor | Input, chain: Sequence[NewNode], weights: Mapping[str, Array]) -> None:
        """Put a chain behind a tensor or before an input, in the graph and as a step."""
        self._add_weights(weights)
        if isinstance(site, Tensor):
            source: str | None = site.name
        else:
            source = self.graph.node(site.node).input(site.index)
        if source is None or source not in self.graph.tensors or not chain:
            raise EditError(f"there is no tensor at {site} to insert nodes behind")
        stem = source if isinstance(site, Tensor) else f"{site.node}.in{site.index}"
        nodes = self._chain(source, self._free_names(stem, len(chain)), chain, last=None)
        producer = self.graph.producer(source)
        position = self.graph.nodes.index(producer) + 1 if producer is not None else 0
        result = nodes[-1].outputs[0]
        if isinstance(site, Tensor):
            self._splice(position, position, nodes, {source: result}, source)
        else:
            node = self.graph.node(site.node)
            inputs = (*node.inputs[: site.index], result, *node.inputs[site.index + 1 :])
            self._splice(position, position, nodes, {}, source, replace(node, inputs=inputs))
        self.steps.append(Inserted(site, tuple(nodes)))

    def _free_names(self, stem: str, number: int) -> list[str]:
        """``<stem>.0``, ``<stem>.1`` and so on, leaving out names of nodes, tensors and constants that exist."""
        free = (name for i in count() if not self.graph.is_taken(name := f"{stem}.{i}"))
        return list(islice(free, number))

    def _chain(self, source: str, names: Sequence[str], chain: Sequence[NewNode], last: str | None) -> list[Node]:
        nodes = []
        for name, new in zip(names, chain, strict=True):
            missing = [o for o in new.operands if o is not None and o not in self.graph.weights]
            if missing:
                raise EditError(f"new node {name!r} ({new.op}) reads {missing[0]!r}, which is no constant of the graph")
            output = last if last is not None else name
            nodes.append(Node(name, new.op, (source, *new.operands), (output,), dict(new.attributes), (name,)))
            source = output
        return nodes

    def _splice(
        self,
        start: int,
        end: int,
        new: Sequence[Node],
        rename: Mapping[str, str],
        like: str,
        changed: Node | None = None,
    ) -> None:
        graph = self.graph
        inside = {node.name for node in new}
        nodes = []
        for node in (*graph.nodes[:start], *new, *graph.nodes[end:]):
            if changed is not None and node.name == changed.name:
                node = changed
            if node.name not in inside and any(name in rename for name in node.inputs):
                node = replace(node, inputs=tuple(rename.get(n, n) if n is not None else None for n in node.inputs))
            nodes.append(node)
        tensors = dict(graph.tensors)
        for node in new:
            for tensor in node.outputs:
                tensors.setdefault(tensor, TensorInfo(None, graph.tensors[like].dtype))
        for old, result in rename.items():
            self._shapes_before.setdefault(result, self._shapes_before.get(old, tensors[old].shape))
        outputs = {name: rename.get(tensor, tensor) for name, tensor in graph.outputs.items()}
        self.graph = replace(graph, tensors=tensors).with_nodes(tuple(nodes), outputs=outputs)

    def _add_weights(self, weights: Mapping[str, Array]) -> None:
        for name, value in weights.items():
            if name in self.graph.weights or name in self.graph.tensors:
                raise EditError(f"a tensor named {name!r} exists already; new constants need new names")
            self.set_value(name, value)

    def infer_shapes(self) -> None:
        """Shapes after the edits; EditError names the node where they stop fitting."""
        graph = self.graph
        tensors = dict(graph.tensors)
        touched: set[str] = {name for name, info in tensors.items() if info.shape is None}
        touched.update(self.values)
        for node in graph.nodes:
            names = [name for name in (*node.inputs, *node.outputs) if name is not None]
            if not any(name in touched for name in names):
                continue
            tensor = node.outputs[0]
            shape = _updated(tensors[tensor].shape, self._infer_node(node, tensors))
            if shape != tensors[tensor].shape:
                tensors[tensor] = replace(tensors[tensor], shape=shape)
                touched.add(tensor)
        self.graph = replace(graph, tensors=tensors)

    def _infer_node(self, node: Node, tensors: Mapping[str, TensorInfo]) -> Shape | None:
        graph = self.graph
        constants = {i: graph.weights[n].shape for i, n in enumerate(node.inputs) if n in graph.weights and n}
        shapes: list[Shape | None] = []
        for index, name in enumerate(node.inputs):
            shapes.append(constants.get(index) if name not in tensors or name is None else tensors[name].shape)
        try:
            input_shapes = [s for s, n in zip(shapes, node.inputs, strict=True) if n is not None]
            shape = infer(node, input_shapes, constants, tensors[node.outputs[0]].shape)
        except ShapeError as mismatch:
            raise EditError(f"the edit does not fit node {node.name!r} ({node.op}): {mismatch}") from mismatch
        if shape is None and tensors[node.outputs[0]].shape is not None and self._input_changed(node, tensors):
            raise EditError(
                f"the edit changes the input shape of node {node.name!r}, and the shapes of {node.op} are unknown"
            )
        return shape

    def _input_changed(self, node: Node, tensors: Mapping[str, TensorInfo]) -> bool:
        names = [name for name in node.inputs if name in tensors and name is not None]
        before = [self._shapes_before.get(name, self.graph.tensors[name].shape) for name in names]
        return any(_differs(shape, tensors[name].shape) for name, shape in zip(names, before, strict=True))


def _differs(before: Shape | None, after: Shape | None) -> bool:
    """Whether a shape is another one now; to learn what was not known is no change."""
    if before is None or after is None:
        return before is not None
    if len(before) != len(after):
        return True
    return any(isinstance(o, int) and isinstance(n, int) and o != n for o, n in zip(before, after, strict=True))


def _updated(old: Shape | None, new: Shape | None) -> Shape | None:
    """The inferred shape, with what was known before wherever the rules of `infer` say less."""
    if old is None or new is None or len(old) != len(new):
        return old if new is None else new
    return tuple(n if isinstance(n, int) or o is None else o for o, n in zip(old, new, strict=True))
