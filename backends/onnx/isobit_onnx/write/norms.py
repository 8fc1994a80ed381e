"""The ONNX form of the norms: ONNX's own op, or its steps where ONNX has none of these axes or without scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from isobit.errors import ModelError
from isobit.graph import Node
from isobit_onnx.write.onnx_writer import Lowering, OnnxWriter


def _layer_norm(writer: OnnxWriter, node: Node, inputs: Sequence[str]) -> None:
    if len(inputs) > 1 and inputs[1] and "axes" not in node.attributes:
        writer.node(node.op, inputs, writer.value(node.outputs[0]), node.name, node.attributes)
        return
    mean, centered = (writer.free(f"{node.name}/{part}") for part in ("mean", "centered"))
    writer.node("ReduceMean", [inputs[0], _axes(writer, node)], mean, mean, {"keepdims": 1})
    writer.node("Sub", [inputs[0], mean], centered, centered, {})
    _over_root(writer, node, [centered, *inputs[1:]])


def _over_root(writer: OnnxWriter, node: Node, inputs: Sequence[str]) -> None:
    """``x / sqrt(mean(x²) + epsilon) * scale + shift``; ONNX has the root mean square norm from opset 23 only."""
    stem, x = node.name, inputs[0]
    square, power, shifted, root = (writer.free(f"{stem}/{p}") for p in ("square", "power", "shifted", "root"))
    epsilon = writer.constant(f"{stem}/epsilon", node.attributes["epsilon"], np.float32)
    writer.node("Mul", [x, x], square, square, {})
    writer.node("ReduceMean", [square, _axes(writer, node)], power, power, {"keepdims": 1})
    writer.node("Add", [power, epsilon], shifted, shifted, {})
    writer.node("Sqrt", [shifted], root, root, {})
    steps = [("Div", root), *zip(("Mul", "Add"), (_along(writer, node, name) for name in inputs[1:]), strict=False)]
    for index, (op, operand) in enumerate(steps):
        is_last = index == len(steps) - 1
        result = writer.value(node.outputs[0]) if is_last else writer.free(f"{stem}/{op.lower()}")
        writer.node(op, [x, operand], result, stem if is_last else result, {})
        x = result


def _axes(writer: OnnxWriter, node: Node) -> str:
    axes = node.attributes.get("axes", range(int(node.attributes["axis"]), 0))
    return writer.constant(f"{node.name}/axes", list(axes), np.int64)


def _along(writer: OnnxWriter, node: Node, vector: str) -> str:
    """A constant with axes of size 1 behind it, where the axis that it is for is not the last."""
    behind = -1 - int(node.attributes.get("axes", (-1,))[-1])
    if behind == 0:
        return vector
    spread = writer.free(f"{vector}/spread")
    target = writer.constant(f"{node.name}/spread", [-1, *[1] * behind], np.int64)
    writer.node("Reshape", [vector, target], spread, spread, {})
    return spread


def _per_channel(writer: OnnxWriter, node: Node, inputs: Sequence[str]) -> None:
    """Group and instance norm; ONNX wants their scale and shift."""
    operands = [*inputs, *[""] * (3 - len(inputs))]
    shape = writer.graph.tensors[node.inputs[0] or ""].shape
    channels = shape[1] if shape is not None else None
    for index, number in ((1, 1.0), (2, 0.0)):
        if not operands[index]:
            if not isinstance(channels, int):
                raise ModelError(
                    f"node {node.name!r} ({node.op}) has no scale, and its number of channels is not known"
                )
            operands[index] = writer.constant(f"{node.name}/operand{index}", np.full(channels, number), np.float32)
    writer.node(node.op, operands, writer.value(node.outputs[0]), node.name, node.attributes)


NORMS: Mapping[str, Lowering] = {
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _over_root,
    "GroupNormalization": _per_channel,
    "InstanceNormalization": _per_channel,
}
