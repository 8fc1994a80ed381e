"""Putting other nodes in the place of one: the part that all rewritings of a read model share."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from isobit.graph.free_name import free_name
from isobit_onnx.read.initializers import add_initializer, describe


class Rewrite:
    """Collects what takes the place of `node` in `graph`; nothing is changed before `finish`."""

    def __init__(self, graph: ir.Graph, node: ir.Node) -> None:
        self.graph, self.node = graph, node
        self.stem = node.name or node.outputs[0].name or node.op_type
        self.nodes: list[ir.Node] = []

    def op(self, op: str, *inputs: ir.Value | None, outputs: int = 1, **attributes: Any) -> ir.Value:
        """The first result of a new node; `outputs` says how many it has. Trailing inputs of None are left out."""
        operands = list(inputs)
        while operands and operands[-1] is None:
            operands.pop()
        given = {key: value for key, value in attributes.items() if value is not None}
        name = f"{self.stem}/{op}{len(self.nodes)}"
        converted = ir.convenience.convert_attributes(given)
        node = ir.Node("", op, operands, converted, num_outputs=outputs, name=name)
        for index, output in enumerate(node.outputs):
            output.name = f"{name}:{index}" if index else name
        self.nodes.append(node)
        return node.outputs[0]

    def constant(self, value: Any, name: str, dtype: Any = np.float32) -> ir.Value:
        """A new constant, named after the node."""
        return new_constant(self.graph, np.asarray(value, dtype), f"{self.stem}/{name}")

    def finish(self, *results: ir.Value) -> None:
        """Let `results` take over the names and readers of the node's outputs, and its name the last new node."""
        old = [value for value in self.node.outputs if value.uses() or value.is_graph_output()]
        kept = [
            self._computed(result) for result, value in zip(results, self.node.outputs, strict=False) if value in old
        ]
        last = kept[-1].producer() if kept else None
        if last is not None:
            last.name = self.node.name
        for value, result in zip(old, kept, strict=True):
            result.shape, result.type = value.shape, value.type or result.type
        ir.convenience.replace_nodes_and_values(self.graph, self.node, [self.node], self.nodes, old, kept)

    def _computed(self, result: ir.Value) -> ir.Value:
        """A result that a node of the rewriting makes: what the node only passed on gets an Identity."""
        producer = result.producer()
        return result if producer is not None and producer in self.nodes else self.op("Identity", result)


def new_constant(graph: ir.Graph, array: NDArray[Any], name: str) -> ir.Value:
    """Add a constant under the first free name."""
    contiguous = np.ascontiguousarray(array).reshape(array.shape)
    return add_initializer(graph, ir.Tensor(contiguous, name=free_name(name, graph.initializers, separator="")))


def constant_of(value: ir.Value | None) -> NDArray[Any] | None:
    """The array of a constant, None of anything that is computed or left out."""
    if value is None or not value.is_initializer() or value.is_graph_input() or value.const_value is None:
        return None
    array: NDArray[Any] = value.const_value.numpy()
    return array


def is_weight(value: ir.Value | None) -> bool:
    """Whether a value is a constant of real numbers, without looking at them."""
    is_constant = value is not None and value.is_initializer() and not value.is_graph_input()
    tensor = value.const_value if value is not None and is_constant else None
    return tensor is not None and tensor.dtype.is_floating_point()


def changed_constant(graph: ir.Graph, value: ir.Value, array: NDArray[Any], what: str) -> ir.Value:
    """The constant with another array: itself where one input reads it, else a new one named ``value.what``."""
    if len(value.uses()) > 1 or value.is_graph_output():
        return new_constant(graph, array, f"{value.name}.{what}")
    contiguous = np.ascontiguousarray(array).reshape(array.shape)
    value.const_value = ir.Tensor(contiguous, name=value.name)
    describe(value, value.const_value)
    return value


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """The value of an attribute, or `default`."""
    return node.attributes[name].value if name in node.attributes else default


def shape_of(value: ir.Value | None) -> tuple[int | None, ...] | None:
    """The sizes of a value, None where one is not a number; None where the rank is not known."""
    if value is None or value.shape is None:
        return None
    return tuple(size if isinstance(size, int) else None for size in value.shape)
