"""From a prepared fx graph to the neutral graph, and the way back from its names to the fx nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn

from isobit.canonical import canonicalize
from isobit.canonical.weight_views import Weights
from isobit.errors import ModelError
from isobit.graph import Graph, Node, TensorInfo, WeightInfo, to_canonical
from isobit_torch.program.convert import to_array
from isobit_torch.program.fx_nodes import (
    DTYPE,
    NAME,
    SHAPE,
    arguments,
    attribute,
    full_name,
    getitems,
    is_tensor,
    op_name,
)
from isobit_torch.program.modules import BatchNorm, Recurrent
from isobit_torch.program.recurrent_calls import KINDS, why_float
from isobit_torch.program.shapes import InputInfo
from isobit_torch.translate.ops import NeutralCall, Viewed, convert, convert_recurrent


@dataclass(frozen=True, eq=False)
class Translation:
    """The canonical graph and what is behind its names.

    `values` are the fx nodes of tensors (inputs too), `attributes` the get_attr nodes by the name of the constant they
    read, `parts` the fx nodes of each raw node, `numbers` constants that are arguments of a call and no attribute.
    """

    graph: Graph
    values: Mapping[str, fx.Node]
    attributes: Mapping[str, fx.Node]
    parts: Mapping[str, tuple[fx.Node, ...]]
    numbers: Mapping[str, NDArray[Any]]

    def constant(self, name: str, root: nn.Module) -> NDArray[Any]:
        """A weight of the graph in canonical layout, with the values that `root` has now."""
        info = self.graph.weights[name]
        source = info.source or name
        if source in self.numbers:
            return np.array(to_canonical(self.numbers[source], info.layout))
        value = attribute(root, str(self.attributes[source].target))
        return np.array(to_canonical(to_array(value), info.layout))


def translate(
    graph: fx.Graph,
    root: nn.Module,
    inputs: tuple[InputInfo, ...],
    outputs: tuple[str | None, ...],
    notes: tuple[str, ...] = (),
    values: Mapping[str, torch.Tensor] | None = None,
) -> Translation:
    """Read a graph with shapes (`isobit_torch.program.shapes`); `values` replace constants of `root`."""
    return _Translator(graph, root, inputs, outputs, notes, values or {}).translate()


class _Translator:
    def __init__(
        self,
        graph: fx.Graph,
        root: nn.Module,
        inputs: tuple[InputInfo, ...],
        outputs: tuple[str | None, ...],
        notes: tuple[str, ...],
        values: Mapping[str, torch.Tensor],
    ) -> None:
        self.fx, self.root, self.inputs, self.output_names, self.new_values = graph, root, inputs, outputs, values
        self.names: dict[fx.Node, str] = {}
        self.values: dict[str, fx.Node] = {}
        self.attributes: dict[str, fx.Node] = {}
        self.parts: dict[str, tuple[fx.Node, ...]] = {}
        self.numbers: dict[str, NDArray[Any]] = {}
        self.tensors: dict[str, TensorInfo] = {}
        self.weights = Weights()
        self.notes = list(notes)

    def translate(self) -> Translation:
        nodes: list[Node] = []
        outputs: dict[str, str] = {}
        shapes = {info.name: info.shape for info in self.inputs}
        for node in self.fx.nodes:
            if node.op == "placeholder":
                self._tensor(node, node.meta[NAME])
                self.tensors[node.meta[NAME]] = TensorInfo(shapes[node.meta[NAME]], node.meta[DTYPE])
            elif node.op == "get_attr":
                self._weight(node)
            elif node.op == "output":
                outputs = self._outputs(node)
            elif op_name(node) != "getitem" and (is_tensor(node) or getitems(node)):
                nodes.append(self._node(node))
        raw = Graph(
            tuple(nodes),
            tuple(info.name for info in self.inputs),
            outputs,
            self.tensors,
            self.weights,
            tuple(self.notes),
        )
        graph = canonicalize(raw)
        return Translation(graph, self.values, self.attributes, self.parts, self.numbers)

    def _outputs(self, node: fx.Node) -> dict[str, str]:
        tensors = {}
        results: Any = node.args[0]
        for name, value in zip(self.output_names, results, strict=True):
            if name is not None and isinstance(value, fx.Node):
                if value.op == "get_attr":
                    raise ModelError(f"output {name!r} is a constant: return computed tensors only")
                tensors[name] = self.names[value]
        return tensors

    def _tensor(self, node: fx.Node, name: str) -> None:
        self.names[node], self.values[name] = name, node
        self.tensors[name] = TensorInfo(node.meta.get(SHAPE), node.meta[DTYPE])

    def _weight(self, node: fx.Node) -> None:
        name = node.meta[NAME]
        self.names[node], self.attributes[name] = name, node
        value = self.new_values.get(str(node.target))
        tensor = attribute(self.root, str(node.target)) if value is None else value
        self.weights[name] = WeightInfo.of(to_array(tensor), name, node.meta[DTYPE])

    def _node(self, node: fx.Node) -> Node:
        name = node.meta[NAME]
        neutral = self._convert(node)
        inputs = tuple(self._input(value, name, index) for index, value in enumerate(neutral.inputs))
        outputs, natives = [], [node]
        if is_tensor(node):
            self._tensor(node, name)
            outputs.append(name)
        else:
            for index, item in sorted(getitems(node).items()):
                if is_tensor(item):
                    tensor = name if index == 0 else f"{name}:{index}"
                    self._tensor(item, tensor)
                    outputs.append(tensor)
                    natives.append(item)
        self.parts[name] = tuple(natives)
        return Node(name, neutral.op, inputs, tuple(outputs), neutral.attributes, (name,))

    def _convert(self, node: fx.Node) -> NeutralCall:
        if node.op == "call_module":
            module = attribute(self.root, str(node.target))
            if isinstance(module, BatchNorm):
                return NeutralCall("BatchNormalization", node.args, {"epsilon": module.epsilon})
            if isinstance(module, Recurrent):
                return convert_recurrent(module, node)
            return NeutralCall("Dropout", node.args)
        neutral = None
        if isinstance(node.target, torch._ops.OpOverload) and _shapes_known(node) and not _is_complex(node):
            neutral = convert(node)
        if neutral is None:
            name = full_name(node)
            tensors = tuple(value for value in node.all_input_nodes if is_tensor(value))
            is_recurrent = op_name(node) in KINDS  # which torch says to be random for a dropout that is off
            random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()) and not is_recurrent
            is_float = any(str(t.meta[DTYPE]).startswith("float") for t in (*tensors, node) if DTYPE in t.meta)
            if is_float and (tensors or random):
                why = "draws random numbers, so that no two runs agree" if random else "has no mapping"
                if is_recurrent:
                    why += f" ({why_float(node, arguments(node))})"
                self.notes.append(f"{name} at {node.meta[NAME]!r} {why}: it stays in float")
            neutral = NeutralCall(name if "::" in name else f"torch::{name}", tensors)
        return neutral

    def _input(self, value: Any, node: str, index: int) -> str | None:
        if value is None:
            return None
        if isinstance(value, Viewed):
            return self.weights.view(self.names[value.node], value.layout)
        if isinstance(value, np.ndarray):
            name = f"{node}.{index}"
            while name in self.weights or name in self.tensors:
                name += "'"
            self.numbers[name] = value
            self.weights[name] = WeightInfo.of(value, name)
            return name
        return self.names[value]


def _is_complex(node: fx.Node) -> bool:
    """Whether a call reads or makes complex numbers, which the neutral vocabulary is not about."""
    return any(str(value.meta.get(DTYPE)).startswith("complex") for value in (*node.all_input_nodes, node))


def _shapes_known(node: fx.Node) -> bool:
    return all(value.meta.get(SHAPE) is not None for value in (*node.all_input_nodes, node) if is_tensor(value))
