"""Sequences and optional values: onnx-ir's inference keeps of their types what they hold alone."""

from __future__ import annotations

import onnx_ir as ir

_MAKE_SEQUENCES = frozenset(
    {"SplitToSequence", "SequenceConstruct", "SequenceInsert", "SequenceErase", "SequenceEmpty"}
)
_PASS_ON = frozenset({"Identity", "SequenceErase", "SequenceInsert"})


def describe_sequences(model: ir.Model) -> None:
    """Give each result that is a sequence, or may be missing, a type that says so, in place."""
    for graph in model.graphs():
        for node in graph:
            if node.domain == "" and node.outputs:
                _describe(node, node.outputs[0])


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
