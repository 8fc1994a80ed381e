"""Building a raw neutral graph node by node: unique names, constants with their arrays, tensors with their shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isobit.canonical import canonicalize
from isobit.errors import ModelError
from isobit.graph.free_name import take_name
from isobit.graph.graph import Graph, Node, Shape, TensorInfo, WeightInfo
from isobit.graph.layout import to_canonical


class GraphBuilder:
    """Collects what a backend reads of a native model. Names of nodes, tensors and constants are unique.

    `scope` is the name that the next node gets, with ``#1`` and so on where it is taken; empty: the op's.
    """

    def __init__(self) -> None:
        self.scope = ""
        self.arrays: dict[str, NDArray[Any]] = {}  # constants, as the native model has them
        self._inputs: list[str] = []
        self._tensors: dict[str, TensorInfo] = {}
        self._nodes: list[Node] = []
        self._taken: set[str] = set()
        self._next: dict[str, int] = {}
        self._stems: dict[str, str] = {}  # by unique name, the name without its number

    def unique(self, name: str) -> str:
        """`name`, or it with a number where it is taken; it is taken from then on."""
        free, number = name, self._next.get(name, 0)
        while free in self._taken:
            number += 1
            free = f"{name}#{number}"
        self._next[name] = number
        self._taken.add(free)
        self._stems[free] = name
        return free

    def input(self, name: str, shape: Shape, dtype: str = "float32") -> str:
        """An input of the model; axis 0 is the batch. Raises ModelError where the name is taken."""
        if name in self._taken:
            raise ModelError(f"the input {name!r} has the name of another input or parameter: give it another one")
        self._taken.add(name)
        self._inputs.append(name)
        self._tensors[name] = TensorInfo(shape, dtype)
        return name

    def constant(self, array: NDArray[Any], name: str = "constant") -> str:
        """A parameter under the user's name, or a number in the code; the array is not copied."""
        free = self.unique(name)
        self.arrays[free] = array
        return free

    def node(
        self, op: str, inputs: Sequence[str | None], shape: Shape, dtype: str = "float32", /, **attributes: Any
    ) -> str:
        """A node with one output of that shape; returns the name of both."""
        name = self.unique(self.scope or op.lower())
        self._nodes.append(Node(name, op, tuple(inputs), (name,), attributes, (name,)))
        self._tensors[name] = TensorInfo(shape, dtype)
        return name

    def shape(self, name: str) -> Any:
        """The shape of a tensor or constant."""
        return self.arrays[name].shape if name in self.arrays else self._tensors[name].shape

    def canonical(self, outputs: Mapping[str, str], *, composed: bool = True) -> tuple[Graph, dict[str, NDArray[Any]]]:
        """The canonical graph and its constants, both in canonical layout, for a backend that runs the graph itself.

        `outputs` are names of tensors by the names of the model's outputs. Raises ModelError for a float constant that
        is not float32, in which such a backend computes.
        """
        infos = {name: WeightInfo.of(array, name) for name, array in self.arrays.items()}
        raw = Graph((), tuple(self._inputs), outputs, self._tensors, infos).with_nodes(tuple(self._nodes))
        graph = self._renumbered(canonicalize(raw, composed=composed))
        wide = next((name for name, info in graph.weights.items() if info.is_float and info.dtype != "float32"), None)
        if wide is not None:
            raise ModelError(f"parameter {wide!r} is {graph.weights[wide].dtype}: parameters are float32 here")
        arrays = {n: to_canonical(self.arrays[i.source or n], i.layout) for n, i in graph.weights.items()}
        return graph, {name: np.array(array, order="C") for name, array in arrays.items()}

    def _renumbered(self, graph: Graph) -> Graph:
        """Number the remaining nodes anew, so that one that stands for a whole scope has its name without a number."""
        used_names = {*graph.inputs, *graph.weights}
        names: dict[str, str] = {}
        for node in graph.nodes:
            # A node's output tensor has the node's name.
            names[node.name] = take_name(self._stems[node.name], used_names, "#")

        def renamed(tensors: Sequence[str | None]) -> tuple[Any, ...]:
            return tuple(names.get(tensor or "", tensor) for tensor in tensors)

        nodes = tuple(
            replace(node, name=names[node.name], inputs=renamed(node.inputs), outputs=renamed(node.outputs))
            for node in graph.nodes
        )
        tensors = {names.get(name, name): info for name, info in graph.tensors.items()}
        outputs = {name: names.get(tensor, tensor) for name, tensor in graph.outputs.items()}
        return replace(graph, nodes=nodes, tensors=tensors, outputs=outputs)
