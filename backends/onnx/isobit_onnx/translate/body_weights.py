"""Weights that layers in the body of an If, a Loop or a Scan read, by the input of the node with the body."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx_ir as ir

#: The axis of the output channels of a constant at an input of a layer, as ONNX has it.
_CHANNELS = {
    ("Conv", 1): 0,
    ("ConvTranspose", 1): 1,
    ("MatMul", 1): -1,
    ("Gather", 0): 0,
    **{(op, index): 1 for op in ("LSTM", "GRU", "RNN") for index in (1, 2)},
}

#: What the core calls a layer.
_NAMES = {"Gemm": "Linear"}


def body_weights(bodies: Iterable[ir.Graph], inputs: Sequence[str | None]) -> tuple[tuple[int, str, int | None], ...]:
    """Input index, operation of the layer, and axis of the channels of each weight; no axis where readers disagree.

    `inputs` are the native values of the node, and then what its bodies read from outside.
    """
    found: dict[str, set[tuple[str, int]]] = {}
    others: set[str] = set()
    for body in bodies:
        for node in ir.traversal.RecursiveGraphIterator(body):
            for index, value in enumerate(node.inputs):
                if value is None or not value.is_initializer() or value.name not in inputs:
                    continue
                axis = _channel_axis(node, index)
                if axis is None or value.shape is None or node.domain:
                    others.add(value.name or "")
                    continue
                layer = (_NAMES.get(node.op_type, node.op_type), axis % len(value.shape))
                found.setdefault(value.name or "", set()).add(layer)
    weights = []
    for index, name in enumerate(inputs):
        layers = sorted(found.get(name or "", ()))
        if layers and name not in others:
            weights.append((index, layers[0][0], layers[0][1] if len(layers) == 1 else None))
    return tuple(weights)


def _channel_axis(node: ir.Node, index: int) -> int | None:
    if node.op_type == "Gemm" and index == 1:
        turned = node.attributes.get("transB")
        return 0 if turned is not None and turned.as_int() else 1
    if node.op_type == "Gather":
        axis = node.attributes.get("axis")
        if axis is not None and axis.as_int() != 0:
            return None
    if node.op_type == "ConvTranspose":
        group = node.attributes.get("group")
        if group is not None and group.as_int() != 1:
            return None
    return _CHANNELS.get((node.op_type, index))
