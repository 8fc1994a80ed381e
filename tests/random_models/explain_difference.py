"""Why a file gives other bits than the simulator: a rounding tie, or a fault.

Two kernels add in another order, so that a value that lies between two levels may fall to either. From there on
everything differs. What is looked at is the first quantizer in order that gives another level: there the values before
it must be all but equal.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from drawing import Array

#: Of the largest value of a tensor: what sums in another order may differ by.
_NOISE = 1e-4

_QUANTIZERS = (
    "QuantizeLinear",
    "Cast",
    "Round",
    "Floor",
    "Ceil",
    "Sign",
    "Greater",
    "Less",
    "ArgMax",
    "ArgMin",
    "TopK",
)
_MOVES = ("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "MaxPool", "Identity", "Clip")


def unexplained(simulator: onnx.ModelProto, written: onnx.ModelProto, feeds: dict[str, Array]) -> str:
    """What no tie explains; empty where the two are the same but for ties.

    `simulator` is run as it is simulated, `written` with optimisation off.
    """
    shared = {name for node in simulator.graph.node for name in node.output if name}
    inner = _floats(written)
    names = [name for node in written.graph.node for name in node.output if name in shared and name in inner]
    ours = _run(simulator, names, feeds, fused=True)
    theirs = _run(written, names, feeds, fused=False)
    if any(np.isnan(values).any() for values in ours.values()):
        return ""  # 0 / 0 of rounded values: no level of a grid is right for it
    rounded = _rounded_ahead(written, shared)
    for node in written.graph.node:
        for name in node.output:
            if name not in ours or name in rounded:
                continue
            a, b = ours[name].astype(np.float64), theirs[name].astype(np.float64)
            if a.shape != b.shape:
                return f"{name!r} of {node.op_type} has shape {b.shape}, not {a.shape}"
            size = float(np.abs(a).max(initial=0.0))
            if np.array_equal(a, b, equal_nan=True):
                continue
            if node.op_type == "DequantizeLinear" and _one_step(written, node, a, b):
                return ""  # values all but equal before it, a step apart behind it
            if np.abs(a - b).max(initial=0.0) <= _NOISE * max(size, 1e-3):
                continue
            if node.op_type in _QUANTIZERS:
                return ""
            return f"{name!r} of {node.op_type} {node.name!r} differs by {np.abs(a - b).max():.3g} of {size:.3g}"
    return ""


def _rounded_ahead(written: onnx.ModelProto, shared: set[str]) -> set[str]:
    """Values on a grid already that the simulator rounds to it further on: what moves hand on to a quantizer alone.

    Formats of fewer bits than onnxruntime has are clipped in front of their quantizers.
    """
    readers: dict[str, list[str]] = {}
    for node in written.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.op_type)
    returned = {output.name for output in written.graph.output}
    on_grid, found = set[str](), set[str]()
    for node in written.graph.node:
        name = node.output[0]
        is_moved = node.op_type in _MOVES and node.input[0] in on_grid
        if is_moved or (node.op_type == "DequantizeLinear" and name not in shared):
            on_grid.add(name)
        if is_moved and name not in returned and set(readers.get(name, ("",))) <= {"QuantizeLinear", "Clip"}:
            found.add(name)
    return found


def _one_step(model: onnx.ModelProto, node: onnx.NodeProto, a: Array, b: Array) -> bool:
    scales = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.name == node.input[1]}
    scale = float(np.max(scales[node.input[1]]))
    return bool(np.abs(a - b).max() <= 1.001 * scale) or scale == 0


def _floats(model: onnx.ModelProto) -> set[str]:
    known = onnx.shape_inference.infer_shapes(model).graph
    values = [*known.value_info, *known.output]
    return {v.name for v in values if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}


def _run(model: onnx.ModelProto, names: list[str], feeds: dict[str, Array], *, fused: bool) -> dict[str, Array]:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    there = {output.name for output in copy.graph.output}
    for name in dict.fromkeys(names):
        if name not in there:
            copy.graph.output.append(onnx.ValueInfoProto(name=name))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    if not fused:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
    outputs = session.run(None, feeds)
    return {o.name: np.asarray(v) for o, v in zip(session.get_outputs(), outputs, strict=True)}
