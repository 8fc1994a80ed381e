"""The ONNX form of every neutral op: the op itself, the op with settings as inputs, or several ops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from onnx import helper

from isobit.graph import Node
from isobit.graph.ops import SETTINGS
from isobit.graph.shape_inference import kept_axes
from isobit_onnx.write.norms import NORMS
from isobit_onnx.write.onnx_writer import Lowering, OnnxWriter

#: Ops with the same name, inputs and attributes in ONNX.
_PLAIN = frozenset(
    "Conv ConvTranspose Gather BatchNormalization "
    "Relu LeakyRelu Elu Selu Celu Gelu HardSwish HardSigmoid Mish Sigmoid Tanh Softplus Softsign "
    "ThresholdedRelu Exp Log Sqrt Reciprocal Neg Abs Erf Sin Cos Floor Ceil Round Sign Softmax LogSoftmax Not IsNaN "
    "Identity Add Sub Mul Div Pow Max Min Mean Sum Equal Greater Less GreaterOrEqual LessOrEqual And Or Xor Mod "
    "Concat Transpose MaxPool ReduceMean ReduceSum ArgMax ArgMin DepthToSpace GatherElements".split()
)

#: What onnxruntime chooses in place of types that its Where has no kernel for.
_CARRIERS = {"bool": "uint8", "int8": "int32", "int16": "int32", "uint16": "int32", "uint32": "int64"}


def _plain(writer: OnnxWriter, node: Node, inputs: Sequence[str]) -> None:
    writer.node(node.op, inputs, [writer.value(output) for output in node.outputs], node.name, node.attributes)


def _with_settings(writer: OnnxWriter, node: Node, inputs: Sequence[str]) -> None:
    """Attributes that are inputs in ONNX."""
    attributes, operands = dict(node.attributes), list(inputs)
    for index, name in sorted(SETTINGS[node.op].items()):
        if name in attributes:
            value = attributes.pop(name)
            real = name in ("min", "max", "value", "scales", "ratio")
            operands += [""] * (index - len(operands))
            operands.append(writer.constant(f"{node.name}/{name}", value, np.float32 if real else np.int64))
    outputs = [writer.value(output) for output in node.outputs]
    writer.node(node.op, operands, outputs, node.name, attributes)


def _linear(writer: OnnxWriter, node: Node, inputs: Sequence[str]) -> None:
    """Gemm for matrices; MatMul and Add for anything with more axes."""
    output, weight = writer.value(node.outputs[0]), node.inputs[1] or ""
    turned = bool(writer.stored_layout(weight))
    if writer.graph.tensors[node.outputs[0]].rank == 2:
        writer.node("Gemm", inputs, output, node.name, {"transB": 0 if turned else 1})
        return
    kernel, biased = inputs[1], len(inputs) == 3 and inputs[2]
    if not turned:
        kernel = writer.free(f"{inputs[1]}/transposed")
        writer.node("Transpose", [inputs[1]], kernel, kernel, {"perm": [1, 0]})
    product = writer.free(f"{node.name}/matmul") if biased else output
    writer.node("MatMul", [inputs[0], kernel], product, f"{node.name}/matmul" if biased else node.name, {})
    if biased:
        writer.node("Add", [product, inputs[2]], output, node.name, {})


def _matmul(writer: OnnxWriter, node: Node, inputs: Sequence[str]) -> None:
    scale, output = node.attributes.get("scale"), writer.value(node.outputs[0])
    if scale is None:
        writer.node("MatMul", inputs, output, node.name, {})
        return
    product = writer.free(f"{node.name}/product")
    writer.node("MatMul", inputs, product, f"{node.name}/product", {})
    factor = writer.constant(f"{node.name}/scale", scale, np.float32)
    writer.node("Mul", [product, factor], output, node.name, {})


def _global_pool(op: str, writer: OnnxWriter, node: Node, inputs: Sequence[str]) -> None:
    output = writer.value(node.outputs[0])
    if node.attributes.get("keepdims", 1):
        writer.node(op, inputs, output, node.name, {})
        return
    pooled = writer.free(f"{node.name}/pooled")
    writer.node(op, inputs, pooled, f"{node.name}/pooled", {})
    writer.node("Flatten", [pooled], output, node.name, {"axis": 1})


def _average_pool(writer: OnnxWriter, node: Node, inputs: Sequence[str]) -> None:
    """onnxruntime (1.32) refuses its own integer kernel where dilations are said, even those of 1."""
    attributes = dict(node.attributes)
    if set(attributes.get("dilations", ())) <= {1}:
        attributes.pop("dilations", None)
    writer.node("AveragePool", inputs, writer.value(node.outputs[0]), node.name, attributes)


def _swish(writer: OnnxWriter, node: Node, inputs: Sequence[str]) -> None:
    gate = writer.free(f"{node.name}/sigmoid")
    writer.node("Sigmoid", inputs, gate, gate, {})
    writer.node("Mul", [inputs[0], gate], writer.value(node.outputs[0]), node.name, {})


def _recurrent(writer: OnnxWriter, node: Node, inputs: Sequence[str]) -> None:
    """ONNX wants an axis for the direction, and the two halves of the bias as one."""
    operands = [*inputs, *[""] * (9 - len(inputs))]
    axes = writer.constant(f"{node.name}/direction", [0], np.int64)

    def directed(name: str) -> str:
        with_direction = writer.free(f"{name}/directed")
        writer.node("Unsqueeze", [name, axes], with_direction, with_direction, {})
        return with_direction

    halves = [operands[3], operands[8]]
    bias = ""
    if any(halves):
        rows = writer.graph.weights[node.inputs[1] or ""].shape[0]
        zeros = np.zeros(rows, np.float32)
        halves = [half or writer.constant(f"{node.name}/no_bias", zeros, np.float32) for half in halves]
        joined = writer.free(f"{node.name}/bias")
        writer.node("Concat", halves, joined, joined, {"axis": 0})
        bias = directed(joined)
    weights = [directed(name) for name in operands[1:3]]
    states = operands[5:7] if node.op == "LSTM" else operands[5:6]
    outputs = [writer.value(output) for output in node.outputs]
    writer.node(node.op, [operands[0], *weights, bias, "", *states], outputs, node.name, node.attributes)


def _prelu(writer: OnnxWriter, node: Node, inputs: Sequence[str]) -> None:
    """ONNX broadcasts the slope from the last axis: a slope a channel gets axes of size 1 behind."""
    slope, rank = inputs[1], writer.graph.tensors[node.inputs[0] or ""].rank or 0
    name = node.inputs[1] or ""
    shape = writer.graph.weights[name].shape if name in writer.graph.weights else ()
    if len(shape) == 1 and rank > 2 and shape[0] != 1:
        slope = writer.free(f"{node.name}/slope")
        target = writer.constant(f"{node.name}/slope_shape", [shape[0], *[1] * (rank - 2)], np.int64)
        writer.node("Reshape", [inputs[1], target], slope, slope, {})
    writer.node("PRelu", [inputs[0], slope], writer.value(node.outputs[0]), node.name, {})


def _cast(writer: OnnxWriter, node: Node, inputs: Sequence[str]) -> None:
    writer.node("Cast", inputs, writer.value(node.outputs[0]), node.name, _to(str(node.attributes["to"])))


def _to(dtype: str) -> dict[str, int]:
    """The attribute of a Cast."""
    return {"to": int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))}


def _where(writer: OnnxWriter, node: Node, inputs: Sequence[str]) -> None:
    """onnxruntime (1.32) chooses between no booleans, which masks of decoders are, and no short integers."""
    dtype, output = writer.graph.tensors[node.outputs[0]].dtype, writer.value(node.outputs[0])
    carrier = _CARRIERS.get(dtype)
    if carrier is None:
        writer.node("Where", inputs, output, node.name, {})
        return
    carried = [writer.free(f"{node.name}/{part}") for part in ("chosen", "otherwise")]
    for name, source in zip(carried, inputs[1:], strict=True):
        writer.node("Cast", [source], name, name, _to(carrier))
    result = writer.free(f"{node.name}/result")
    writer.node("Where", [inputs[0], *carried], result, node.name, {})
    writer.node("Cast", [result], output, result, _to(dtype))


def _expand(writer: OnnxWriter, node: Node, inputs: Sequence[str]) -> None:
    """-1 keeps a size, which ONNX writes as 1."""
    shape = [1 if n < 0 else n for n in node.attributes["shape"]]
    target = writer.constant(f"{node.name}/shape", shape, np.int64)
    writer.node("Expand", [inputs[0], target], writer.value(node.outputs[0]), node.name, {})


def _unit_axes(writer: OnnxWriter, node: Node, inputs: Sequence[str], rank: int, kept: Sequence[int | None]) -> None:
    """Axes of size 1 removed and added, where a 0 of Reshape would keep the size of another axis."""
    removed = [axis for axis in range(rank) if axis not in kept]
    added = [place for place, axis in enumerate(kept) if axis is None]
    value, output = inputs[0], writer.value(node.outputs[0])
    if removed:
        value = writer.free(f"{node.name}/squeezed") if added else output
        axes = writer.constant(f"{node.name}/removed", removed, np.int64)
        writer.node("Squeeze", [inputs[0], axes], value, f"{node.name}/squeezed" if added else node.name, {})
    if added:
        axes = writer.constant(f"{node.name}/added", added, np.int64)
        writer.node("Unsqueeze", [value, axes], output, node.name, {})


def _reshape(writer: OnnxWriter, node: Node, inputs: Sequence[str]) -> None:
    """With several unknown sizes the batch keeps its own (0), the last one is worked out (-1)."""
    shape: list[int] = list(node.attributes["shape"])
    unknown = [axis for axis, size in enumerate(shape) if size < 0]
    source = writer.graph.tensors[node.inputs[0] or ""].shape
    kept = kept_axes(source, shape) if source is not None else None
    if source is not None and kept is not None and any(kept[axis] != axis for axis in unknown[:-1]):
        _unit_axes(writer, node, inputs, len(source), kept)
        return
    for axis in unknown[:-1]:
        shape[axis] = 0
    target = writer.constant(f"{node.name}/shape", shape, np.int64)
    writer.node("Reshape", [inputs[0], target], writer.value(node.outputs[0]), node.name, {})


LOWERINGS: Mapping[str, Lowering] = {
    **dict.fromkeys(_PLAIN, _plain),
    **dict.fromkeys(set(SETTINGS) - {"Dropout"}, _with_settings),
    "Linear": _linear,
    "MatMul": _matmul,
    "AveragePool": _average_pool,
    "GlobalAveragePool": partial(_global_pool, "GlobalAveragePool"),
    "GlobalMaxPool": partial(_global_pool, "GlobalMaxPool"),
    "Swish": _swish,
    **NORMS,
    "PRelu": _prelu,
    "Cast": _cast,
    "Where": _where,
    "Expand": _expand,
    "Reshape": _reshape,
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent),
}
