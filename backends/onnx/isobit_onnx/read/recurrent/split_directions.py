"""Bidirectional layers as two layers of one direction each, as the neutral graph has them (decision 0006)."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from isobit.graph.ops import RECURRENT
from isobit_onnx.read.initializers import add_initializer
from isobit_onnx.read.unused_nodes import remove_unused

_DIRECTIONS = ("forward", "reverse")

#: Inputs that hold both directions along axis 0: weights, bias, initial states, peepholes.
_OF_BOTH = (1, 2, 3, 5, 6, 7)


def split_directions(model: ir.Model) -> None:
    """Make a forward and a reverse layer of each bidirectional one, and concatenate their results, in place.

    Names of tensors stay. Layers whose activations have parameters, or whose batch comes first, stay as they are.
    """
    for node in list(model.graph):
        attributes = node.attributes
        direction = attributes["direction"].as_string() if "direction" in attributes else ""
        if node.domain or node.op_type not in RECURRENT or direction != "bidirectional":
            continue
        batch_first = "layout" in attributes and attributes["layout"].as_int()
        if not batch_first and not {"activation_alpha", "activation_beta"} & attributes.keys():
            _Splitter(model.graph, node).run()
    remove_unused(model)  # what joined the weights of both


class _Splitter:
    def __init__(self, graph: ir.Graph, node: ir.Node) -> None:
        self.graph, self.node = graph, node
        self.name = node.name or node.outputs[0].name or node.op_type

    def run(self) -> None:
        layers = [self._layer(index, direction) for index, direction in enumerate(_DIRECTIONS)]
        used_outputs = [(i, old) for i, old in enumerate(self.node.outputs) if old.uses() or old.is_graph_output()]
        joined = [self._joined(index, layers) for index, _ in used_outputs]
        results = [node.outputs[0] for node in joined]
        ir.convenience.replace_nodes_and_values(
            self.graph, self.node, [self.node], [*layers, *joined], [old for _, old in used_outputs], results
        )

    def _joined(self, index: int, layers: list[ir.Node]) -> ir.Node:
        """Output `index` of both: axis 1 of Y and axis 0 of the last states are the directions."""
        name = self.name if index == 0 else f"{self.name}:{index}"
        parts = [layer.outputs[index] for layer in layers]
        return ir.Node("", "Concat", parts, [ir.AttrInt64("axis", 1 if index == 0 else 0)], name=name)

    def _layer(self, index: int, direction: str) -> ir.Node:
        inputs = [self._part(position, value, index) for position, value in enumerate(self.node.inputs)]
        attributes = {**self.node.attributes, "direction": ir.AttrString("direction", direction)}
        if "activations" in attributes:
            activations = attributes["activations"].as_strings()
            half = len(activations) // 2
            attributes["activations"] = ir.AttrStrings("activations", activations[index * half : (index + 1) * half])
        name, count = f"{self.name}.{direction}", len(self.node.outputs)
        layer = ir.Node("", self.node.op_type, inputs, list(attributes.values()), num_outputs=count, name=name)
        for old, new in zip(self.node.outputs, layer.outputs, strict=True):
            new.name = f"{old.name}.{direction}" if old.name else ""
            new.type = old.type
        return layer

    def _part(self, position: int, value: ir.Value | None, index: int) -> ir.Value | None:
        """What one direction reads of an input that holds both."""
        if value is None or position not in _OF_BOTH:
            return value
        producer = value.producer()
        joined = producer is not None and producer.op_type == "Concat" and len(producer.inputs) == 2
        if producer is not None and joined and producer.attributes["axis"].as_int() == 0:
            return producer.inputs[index]
        name = f"{value.name}.{_DIRECTIONS[index]}"
        if name in self.graph.initializers:  # of another layer that shares the weight
            return self.graph.initializers[name]
        if value.is_initializer() and value.const_value is not None:
            array = np.ascontiguousarray(value.const_value.numpy()[index : index + 1])
            return add_initializer(self.graph, ir.Tensor(array, value.const_value.dtype, name=name))
        name = f"{self.name}.{name}"
        cut = ir.Node("", "Slice", [value, *(self._number(n) for n in (index, index + 1, 0))], name=name)
        cut.outputs[0].name, cut.outputs[0].type = name, value.type
        self.graph.insert_before(self.node, [cut])
        return cut.outputs[0]

    def _number(self, number: int) -> ir.Value:
        name = f"{self.name}.direction{number}"
        constant = self.graph.initializers.get(name)
        return constant or add_initializer(self.graph, ir.Tensor(np.array([number], np.int64), name=name))
