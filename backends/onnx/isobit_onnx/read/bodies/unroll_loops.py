"""A Loop or Scan of few passes, whose number constants decide, as that many copies of its body, one behind the other.

Layers in a body are seen by nobody: as copies they are quantized like all others. What would become large, draws at
random, or goes on for as long as the data say, stays a loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from isobit.graph.free_name import take_name
from isobit.graph.ops import RANDOM
from isobit_onnx.read.constant_expressions import LAYERS, constant_value
from isobit_onnx.read.rewrite import attribute, new_constant, shape_of

_MOST_PASSES = 32
_MOST_NODES = 1000


def unroll_loops(model: ir.Model) -> bool:
    """Unroll what can be of those with layers in their bodies, in place. Returns whether there was one."""
    changed = False
    for node in list(model.graph):
        if not node.domain and node.op_type in ("Loop", "Scan"):
            inner = list(ir.traversal.RecursiveGraphIterator(node.attributes["body"].as_graph()))
            has_layers = any(other.op_type in LAYERS for other in inner)
            if has_layers and not any(other.op_type in RANDOM for other in inner):
                copies = _Copies(model.graph, node)
                changed |= copies.finish(_loop(copies) if node.op_type == "Loop" else _scan(copies))
    return changed


class _TooLargeError(Exception):
    pass


class _Copies:
    """What takes the place of a loop: copies of its body, and what is between them. Nothing counts before `finish`."""

    def __init__(self, graph: ir.Graph, node: ir.Node) -> None:
        self.graph, self.node, self.body = graph, node, node.attributes["body"].as_graph()
        self.stem = node.name or node.outputs[0].name or node.op_type
        self.nodes: list[ir.Node] = []
        self.passes = 0
        self._taken = {output.name for other in graph.all_nodes() for output in other.outputs}
        self._taken |= {value.name for value in graph.inputs} | set(graph.initializers)
        _lift_constants(self.body, graph, self._taken)

    def constant(self, value: Any, dtype: Any = np.int64) -> ir.Value:
        """A constant of the loop."""
        return new_constant(self.graph, np.asarray(value, dtype), f"{self.stem}/{value}")

    def op(self, op: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        """The result of a new node."""
        node = ir.Node("", op, inputs, ir.convenience.convert_attributes(attributes))
        self._add(node, op)
        return node.outputs[0]

    def copy(self, inputs: Sequence[ir.Value]) -> list[ir.Value]:
        """The results of one more pass, for these inputs of the body."""
        if self.passes == _MOST_PASSES or len(self.nodes) + len(self.body) > _MOST_NODES:
            raise _TooLargeError
        copied = self.body.clone(allow_outer_scope_values=True)
        given = dict(zip(copied.inputs, inputs, strict=True))
        results = [given.get(value, value) for value in copied.outputs]
        copied.outputs.clear()
        for old, new in given.items():
            ir.convenience.replace_all_uses_with(old, new)
        nodes = list(copied)
        copied.remove(nodes)
        for node in nodes:
            self._add(node, node.name or node.op_type)
        self.passes += 1
        return results

    def _add(self, node: ir.Node, name: str) -> None:
        node.name = f"{self.stem}/{self.passes}/{name}"
        for output in node.outputs:
            output.name = self._free(f"{self.stem}/{self.passes}/{output.name or name}") if output.name != "" else ""
            output.shape = None  # sizes in a body are of all passes, and have names of their own
        self.nodes.append(node)

    def _free(self, name: str) -> str:
        return take_name(name, self._taken)

    def finish(self, results: Sequence[ir.Value] | None) -> bool:
        """Put all in the place of the loop, or let nothing of it be a reader where there are no results."""
        if results is None:
            for node in self.nodes:
                for index in range(len(node.inputs)):
                    node.replace_input_with(index, None)
            return False
        used: set[ir.Value] = set()
        kept = []
        for old, result in zip(self.node.outputs, results, strict=True):
            made = result if result not in used and result.producer() in self.nodes else self.op("Identity", result)
            made.type = made.type or old.type
            used.add(made)
            kept.append(made)
        ir.convenience.replace_nodes_and_values(
            self.graph, self.node, [self.node], self.nodes, list(self.node.outputs), kept
        )
        return True


def _loop(copies: _Copies) -> list[ir.Value] | None:
    """Passes until the number is reached, or the body's condition, which must follow from constants, says so."""
    count, condition, *given = copies.node.inputs
    most = None if count is None else constant_value(count)
    begins = None if condition is None else constant_value(condition)
    if (count is not None and (most is None or most.size != 1)) or (condition is not None and begins is None):
        return None
    states = [value for value in given if value is not None]
    limit = None if most is None else int(most.reshape(-1)[0])
    if len(states) < len(given) or (limit is not None and limit < 1) or (begins is not None and not begins.all()):
        return None
    collected: list[list[ir.Value]] = [[] for _ in copies.node.outputs[len(states) :]]
    true = copies.constant(True, np.bool_)
    try:
        while True:
            go_on, *results = copies.copy([copies.constant(copies.passes), true, *states])
            states = results[: len(states)]
            for values, value in zip(collected, results[len(states) :], strict=True):
                values.append(value)
            if copies.passes == limit:
                break
            goes_on = constant_value(go_on)
            if goes_on is None:
                return None
            if not goes_on.all():
                break
    except _TooLargeError:
        return None
    return [*states, *(_joined(copies, values, 0) for values in collected)]


def _scan(copies: _Copies) -> list[ir.Value] | None:
    """One pass for each part of the inputs that are scanned."""
    node = copies.node
    count = int(attribute(node, "num_scan_inputs", 0))
    operands = [value for value in node.inputs if value is not None]
    states, scanned = operands[: len(operands) - count], operands[len(operands) - count :]
    axes = [int(axis) for axis in attribute(node, "scan_input_axes", None) or [0] * count]
    backwards = attribute(node, "scan_input_directions", None) or [0] * count
    shape = shape_of(scanned[0])
    length = shape[axes[0]] if shape is not None else None
    if len(operands) < len(node.inputs) or not length or length > _MOST_PASSES:
        return None
    collected: list[list[ir.Value]] = [[] for _ in node.outputs[len(states) :]]
    try:
        for number in range(length):
            places = [copies.constant(length - 1 - number if back else number) for back in backwards]
            parts = [
                copies.op("Gather", value, place, axis=axis)
                for value, place, axis in zip(scanned, places, axes, strict=True)
            ]
            results = copies.copy([*states, *parts])
            states = results[: len(states)]
            for values, value in zip(collected, results[len(states) :], strict=True):
                values.append(value)
    except _TooLargeError:
        return None
    places_of = attribute(node, "scan_output_axes", None) or [0] * len(collected)
    turned = attribute(node, "scan_output_directions", None) or [0] * len(collected)
    joined = [
        _joined(copies, values[::-1] if back else values, int(axis))
        for values, axis, back in zip(collected, places_of, turned, strict=True)
    ]
    return [*states, *joined]


def _joined(copies: _Copies, values: Sequence[ir.Value], axis: int) -> ir.Value:
    """The values of all passes along a new axis."""
    place = copies.constant([axis])
    return copies.op("Concat", *(copies.op("Unsqueeze", value, place) for value in values), axis=axis)


def _lift_constants(body: ir.Graph, graph: ir.Graph, taken: set[str | None]) -> None:
    """Let all copies of a body share its constants; what it hands on as it is gets a node."""
    for index, output in enumerate(body.outputs):
        if output.producer() is None and output not in body.inputs:
            node = ir.Node("", "Identity", [output])
            node.outputs[0].type, node.outputs[0].name = output.type, f"{output.name}/handed_on"
            body.outputs[index] = node.outputs[0]
            body.append(node)
    for value in list(body.initializers.values()):
        if value.is_graph_input():
            continue
        body.initializers.pop(value.name or "")
        value.name = take_name(value.name or "value", taken)
        graph.register_initializer(value)
