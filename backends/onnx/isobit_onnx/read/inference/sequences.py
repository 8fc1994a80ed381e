"""Sequences and optional values: onnx-ir's inference keeps of their types what they hold alone."""

from __future__ import annotations

import onnx_ir as ir

_MAKE_SEQUENCES = frozenset(
    {"SplitToSequence", "SequenceConstruct", "SequenceInsert", "SequenceErase", "SequenceEmpty"}
)
_PASS_ON = frozenset({"Identity", "SequenceErase", "SequenceInsert"})


def describe_sequences(model: ir.Model) -> None:
    """Give each result that is a sequence, or may be missing, a type that says so, in place."""
    _describe_graph(model.graph)


def _describe_graph(graph: ir.Graph) -> None:
    for node in graph:
        if node.domain:
            continue
        bodies = [a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]
        if node.op_type == "Loop" and bodies:  # what goes from pass to pass has the type that it begins with
            for value, given in zip(bodies[0].inputs[2:], node.inputs[2:], strict=False):
                _take_wrapped(value, given)
        for body in bodies:
            _describe_graph(body)
        if node.op_type == "Loop" and bodies:
            for value, given in zip(node.outputs, bodies[0].outputs[1:], strict=False):
                _take_wrapped(value, given)
        elif node.op_type == "If":
            for body in bodies:
                for value, given in zip(node.outputs, body.outputs, strict=False):
                    _take_wrapped(value, given)
        elif node.outputs:
            _describe(node, node.outputs[0])


def _take_wrapped(value: ir.Value, given: ir.Value | None) -> None:
    if given is not None and _is_wrapped(given.type):
        value.type = given.type


def _describe(node: ir.Node, result: ir.Value) -> None:
    source = node.inputs[0].type if node.inputs and node.inputs[0] is not None else None
    held = result.type
    if node.op_type in _PASS_ON and _is_wrapped(source):
        result.type = source
    elif not isinstance(held, ir.TensorType):
        return
    elif node.op_type in _MAKE_SEQUENCES:
        result.type = ir.SequenceType(held)
    elif node.op_type == "Optional":
        result.type = ir.OptionalType(source if isinstance(source, ir.SequenceType) else held)
    elif node.op_type == "OptionalGetElement" and isinstance(source, ir.OptionalType):
        element = source.elem_type
        result.type = element if isinstance(element, ir.SequenceType) else held


def _is_wrapped(kind: ir.TypeProtocol | None) -> bool:
    return isinstance(kind, ir.SequenceType | ir.OptionalType)
