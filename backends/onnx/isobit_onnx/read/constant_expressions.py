"""Weights that follow from constants alone (weight norm, slices of a packed projection, merged LoRA): computed ahead.

What goes into a weight is computed whatever its size. What else follows from constants is, where it is no larger than
these. The constants that it was made of go, where nothing else reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from isobit.graph.ops import RANDOM
from isobit_onnx.read.initializers import add_initializer
from isobit_onnx.read.recurrent.join_weights import joins_weights
from isobit_onnx.read.unused_nodes import remove_unused

#: Constants up to this many elements are computed ahead whatever they are for.
FOLD_LIMIT = 4096

VIEWS = frozenset({"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Cast", "Identity"})

#: Stands for a size that is not known; what picks from a list of sizes may meet it.
_UNKNOWN_SIZE = -(2**40)
_PICKS = frozenset({"Gather", "Slice", "Squeeze", "Unsqueeze", "Identity"})

_RECURRENT = (1, 2, 3)

#: Inputs that hold weights, by op; the other inputs hold what a weight meets.
_SLOTS: Mapping[str, tuple[int, ...]] = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (0, 1, 2),
    "MatMul": (0, 1),
    "Einsum": (0, 1),
    "Gather": (0,),
    "BatchNormalization": (1, 2, 3, 4),
    "LayerNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "RMSNormalization": (1,),
    "PRelu": (1,),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _RECURRENT),
}

#: Operations that multiply by weights.
LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "LSTM", "GRU", "RNN"})

#: What is not the same each time, and what is no tensor.
_NOT_COMPUTED = RANDOM | frozenset(
    "SequenceConstruct SequenceAt SequenceEmpty SequenceInsert SequenceErase SplitToSequence ConcatFromSequence "
    "Optional OptionalGetElement StringNormalizer StringConcat StringSplit RegexFullMatch TfIdfVectorizer".split()
)


def fold_expressions(model: ir.Model) -> None:
    """Compute every expression of constants that a weight or another small constant is made of, in place."""
    constants = _constants(model.graph)
    ends = [value for value in constants if value.producer() is not None and _is_read_as_data(value, constants)]
    for value in ends:
        for part in _computed_parts(value):
            _fold(model.graph, part, is_weight=_goes_into_weight(part))
    remove_unused(model)


def _constants(graph: ir.Graph) -> dict[ir.Value, None]:
    """Every value that follows from constants alone, in order."""
    constants = dict.fromkeys(v for v in graph.initializers.values() if v.const_value and not v.is_graph_input())
    for node in graph:
        inputs = [value for value in node.inputs if value is not None]
        if _is_computable(node) and inputs and all(value in constants for value in inputs):
            constants.update(dict.fromkeys(node.outputs))
    return constants


def _is_computable(node: ir.Node) -> bool:
    has_body = any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values())
    return not node.domain and node.op_type not in _NOT_COMPUTED and not has_body


def _is_read_as_data(value: ir.Value, constants: Mapping[ir.Value, None]) -> bool:
    return any(output not in constants for use in value.uses() for output in use.node.outputs)


def _computed_parts(value: ir.Value) -> list[ir.Value]:
    """The values behind views and joins, which are carried out on the weight itself, that need computing."""
    node = value.producer()
    if node is None:
        return []
    if node.op_type in VIEWS and node.inputs[0] is not None:
        return _computed_parts(node.inputs[0])
    if joins_weights(node):
        return [part for operand in node.inputs if operand is not None for part in _computed_parts(operand)]
    return [value]


def _goes_into_weight(value: ir.Value) -> bool:
    return any(
        use.idx in _SLOTS.get(use.node.op_type, ())
        or ((use.node.op_type in VIEWS or joins_weights(use.node)) and any(map(_goes_into_weight, use.node.outputs)))
        for use in value.uses()
    )


def _fold(graph: ir.Graph, value: ir.Value, *, is_weight: bool) -> None:
    if value.producer() is None or (not is_weight and not _is_small(value)):
        return
    try:
        array = _value(value, {})
    except Exception:  # the evaluator raises many kinds, and has not every operation: the runtime computes it then
        return
    if array.dtype.kind not in "biufV":  # texts stay as they are
        return
    name = value.name or ""
    value.name = f"{name}/computed"
    folded = add_initializer(graph, ir.Tensor(np.ascontiguousarray(array).reshape(array.shape), name=name))
    for use in list(value.uses()):
        use.node.replace_input_with(use.idx, folded)
    if value.is_graph_output():
        folded.name, value.name = f"{name}/constant", name


def _is_small(value: ir.Value) -> bool:
    """Whether a value is no larger than the constants that it is made of, or small at all."""
    sizes = [size for size in value.shape if isinstance(size, int)] if value.shape is not None else None
    if value.shape is None or sizes is None or len(sizes) < len(value.shape):
        return False
    return int(np.prod(sizes)) <= max(FOLD_LIMIT, _elements(value))


def _elements(value: ir.Value) -> int:
    """How many numbers the largest constant holds that a value is made of."""
    if value.const_value is not None:
        return value.const_value.size
    node = value.producer()
    return max((_elements(v) for v in node.inputs if v is not None), default=0) if node is not None else 0


def _value(value: ir.Value, known: dict[ir.Value, NDArray[Any]]) -> NDArray[Any]:
    if value.const_value is not None:
        return value.const_value.numpy()
    node = value.producer()
    if node is None:
        raise ValueError(f"{value.name!r} has no value")
    if value not in known:
        inputs = {operand.name or "": _value(operand, known) for operand in node.inputs if operand is not None}
        results: Any = ReferenceEvaluator(ir.to_proto(node)).run(None, inputs)
        known.update(zip(node.outputs, map(np.asarray, results), strict=False))
    return known[value]


def constant_value(value: ir.Value) -> NDArray[Any] | None:
    """What a value that follows from constants and known sizes holds; None of any other."""
    try:
        array = _known_value(value, {})
    except Exception:  # the evaluator raises many kinds, and has not every operation
        return None
    return None if _has_unknown(array) else array


def _known_value(value: ir.Value, known: dict[ir.Value, NDArray[Any]]) -> NDArray[Any]:
    node = value.producer()
    if node is None:
        if value.const_value is None or value.is_graph_input():
            raise ValueError(f"{value.name!r} has no value")
        return value.const_value.numpy()
    if value in known:
        return known[value]
    if node.op_type == "Constant":
        constants: Any = ReferenceEvaluator(ir.to_proto(node)).run(None, {})
        known[value] = np.asarray(constants[0])
    elif node.op_type == "Shape" and not node.domain and not node.attributes:
        shape = node.inputs[0].shape if node.inputs[0] is not None else None
        if shape is None:
            raise ValueError(f"the rank of {value.name!r} is not known")
        known[value] = np.array([size if isinstance(size, int) else _UNKNOWN_SIZE for size in shape], np.int64)
    else:
        if not _is_computable(node):
            raise ValueError(f"{node.op_type} is not computed ahead")
        inputs = {operand.name or "": _known_value(operand, known) for operand in node.inputs if operand is not None}
        if node.op_type not in _PICKS and any(map(_has_unknown, inputs.values())):
            raise ValueError(f"{node.op_type} meets an unknown size")
        results: Any = ReferenceEvaluator(ir.to_proto(node)).run(None, inputs)
        known.update(zip(node.outputs, map(np.asarray, results), strict=False))
    return known[value]


def _has_unknown(array: NDArray[Any]) -> bool:
    return array.dtype == np.int64 and bool(np.any(array == _UNKNOWN_SIZE))
