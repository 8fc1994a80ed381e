"""Outputs that are constants (anchors, class numbers, positions): handed on by a node, as every other output is."""

from __future__ import annotations

import onnx_ir as ir

from isobit.graph.free_name import free_name


def hand_on_constants(model: ir.Model) -> None:
    """Put an Identity between each constant and the output of the model that it is, in place."""
    graph = model.graph
    for index, output in enumerate(graph.outputs):
        if not output.is_initializer() or output.is_graph_input():
            continue
        name = output.name or ""
        free = free_name(f"{name}.constant", graph.initializers, separator="")
        node = ir.Node("", "Identity", [output], name=f"{name}/Identity")
        graph.outputs[index] = result = node.outputs[0]
        constant = output.const_value  # its shape is the truth, whatever the file says of the output
        result.shape = ir.Shape(constant.shape.numpy()) if constant is not None else output.shape
        result.type = output.type
        output.name = free
        result.name = name
        graph.append(node)
