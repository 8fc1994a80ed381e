"""Types and shapes behind operators that are not ONNX's: onnxruntime knows those that it runs.

Without them nothing behind such an operator is known to be a real number, and so nothing there is quantized.
"""

from __future__ import annotations

from importlib.util import find_spec

import onnx_ir as ir

from isobit_onnx.read.initializers import SMALL_TENSOR
from isobit_onnx.read.open_session import open_session

_KNOWN_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml"})
_ASKED = "isobit.type_asked"
_TYPES = {
    "tensor(float)": ir.DataType.FLOAT,
    "tensor(double)": ir.DataType.DOUBLE,
    "tensor(float16)": ir.DataType.FLOAT16,
    "tensor(bfloat16)": ir.DataType.BFLOAT16,
    "tensor(bool)": ir.DataType.BOOL,
    "tensor(string)": ir.DataType.STRING,
    **{f"tensor({s}int{n})": ir.DataType[f"{s}INT{n}".upper()] for s in ("", "u") for n in (8, 16, 32, 64)},
}


def describe_foreign(model: ir.Model) -> bool:
    """Set the types and shapes of such results, in place. Returns whether anything was set that was not known."""
    asked = [
        value
        for node in model.graph
        if node.domain not in _KNOWN_DOMAINS
        for value in node.outputs
        if value.name and (value.type is None or value.shape is None) and not value.meta.get(_ASKED)
    ]
    if not asked or find_spec("onnxruntime") is None:
        return False
    for value in asked:
        value.meta[_ASKED] = True  # what the runtime does not tell, it does not tell later either
    changed = False
    for value, (kind, shape) in zip(asked, _told(model, [value.name or "" for value in asked]), strict=False):
        if value.type is None and kind in _TYPES:
            value.type, changed = ir.TensorType(_TYPES[kind]), True
        if value.shape is None and shape is not None:
            value.shape, changed = ir.Shape(shape), True
    return changed


def _told(model: ir.Model, names: list[str]) -> list[tuple[str, list[int | str | None] | None]]:
    """Type and shape of each value, in the words of onnxruntime; nothing where it does not take the model."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        file = ir.to_proto(_skeleton(model, names)).SerializeToString()
        session = open_session(file, options)
    except Exception:  # onnxruntime raises its own kinds: what does not load is said where the model is run
        return []
    return [(output.type, list(output.shape) or None) for output in session.get_outputs()]


def _skeleton(model: ir.Model, names: list[str]) -> ir.Model:
    """A copy whose results are these values, with inputs in the place of large constants."""
    skeleton = model.clone()
    graph = skeleton.graph
    values = ir.convenience.create_value_mapping(graph)
    graph.outputs[:] = [values[name] for name in names]
    for name, value in list(graph.initializers.items()):
        if value.const_value is not None and value.const_value.nbytes > SMALL_TENSOR:
            del graph.initializers[name]
            value.const_value = None
            graph.inputs.append(value)
    return skeleton
