"""Weights that layers in the body of an If, a Loop or a Scan read, by the input of the node with the body."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx_ir as ir

#: The axes of the output channels and of the blocks of a constant at an input of a layer, as ONNX has it.
_AXES = {
    ("Conv", 1): (0, 1),
    ("ConvTranspose", 1): (1, 0),
    ("MatMul", 1): (-1, -2),
    ("Gather", 0): (0, -1),
    **{(op, index): (1, 2) for op in ("LSTM", "GRU", "RNN") for index in (1, 2)},
}

#: An operation, with the two axes of its weight.
_Layer = tuple[str, int, int]

#: Input of the node with the body, operation of the layer inside, and the axes of the weight, if its readers agree.
BodyWeight = tuple[int, str, int | None, int | None]

#: What the core calls a layer.
_NAMES = {"Gemm": "Linear"}


def body_weights(bodies: Iterable[ir.Graph], inputs: Sequence[str | None]) -> tuple[BodyWeight, ...]:
    """Input index, operation of the layer, and axes of channels and blocks of each weight; none where readers disagree.

    `inputs` are the native values of the node, and then what its bodies read from outside.
    """
    found: dict[str, set[_Layer]] = {}
    others: set[str] = set()
    for body in bodies:
        for node in ir.traversal.RecursiveGraphIterator(body):
            for index, value in enumerate(node.inputs):
                if value is None or not value.is_initializer() or value.name not in inputs:
                    continue
                axes = _axes(node, index)
                if axes is None or value.shape is None or len(value.shape) < 2 or node.domain:
                    others.add(value.name or "")
                    continue
                rank = len(value.shape)
                layer = (_NAMES.get(node.op_type, node.op_type), axes[0] % rank, axes[1] % rank)
                found.setdefault(value.name or "", set()).add(layer)
    weights: list[BodyWeight] = []
    for index, name in enumerate(inputs):
        layers = sorted(found.get(name or "", ()))
        if layers and name not in others:
            op, channel, block = layers[0]
            weights.append((index, op, channel, block) if len(layers) == 1 else (index, op, None, None))
    return tuple(weights)


def _axes(node: ir.Node, index: int) -> tuple[int, int] | None:
    if node.op_type == "Gemm" and index == 1:
        turned = node.attributes.get("transB")
        return (0, 1) if turned is not None and turned.as_int() else (1, 0)
    if node.op_type == "Gather":
        axis = node.attributes.get("axis")
        if axis is not None and axis.as_int() != 0:
            return None
    if node.op_type == "ConvTranspose":
        group = node.attributes.get("group")
        if group is not None and group.as_int() != 1:
            return None
    return _AXES.get((node.op_type, index))
