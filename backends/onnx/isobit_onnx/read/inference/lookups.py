"""Types and shapes behind operators of ai.onnx.ml and of texts, of which ONNX infers little.

Networks with a vocabulary, scalers or encoders in front (scikit-learn, spaCy, tabular models) are quantized behind them
where it is known that floats come out.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

_ML = "ai.onnx.ml"
_TYPE_OF_VALUES = {
    "values_floats": ir.DataType.FLOAT,
    "values_int64s": ir.DataType.INT64,
    "values_strings": ir.DataType.STRING,
}
_CATEGORIES = ("cats_strings", "cats_int64s")

_Described = tuple[ir.DataType, Sequence[int | ir.SymbolicDim] | None]


def describe_lookups(graph: ir.Graph) -> bool:
    """Set the types and shapes of such results, in place. Returns whether anything was set that was not known."""
    changed = False
    for node in graph:
        described = _described(node)
        if described is None:
            continue
        dtype, sizes = described
        result = node.outputs[0]
        if result.type is None:
            result.type, changed = ir.TensorType(dtype), True
        if result.shape is None and sizes is not None:
            result.shape, changed = ir.Shape(sizes), True
    return changed


def _described(node: ir.Node) -> _Described | None:
    source = node.inputs[0] if node.inputs else None
    sizes = None if source is None or source.shape is None else list(source.shape)
    if node.domain == _ML:
        return _of_ml(node, source, sizes)
    if node.domain == "" and node.op_type == "TfIdfVectorizer":
        count = max(node.attributes["ngram_indexes"].as_ints()) + 1
        return ir.DataType.FLOAT, None if sizes is None else [*sizes[:-1], count]
    return None


def _of_ml(node: ir.Node, source: ir.Value | None, sizes: list[int | ir.SymbolicDim] | None) -> _Described | None:
    op, attributes = node.op_type, node.attributes
    if op in ("Scaler", "Normalizer"):
        return ir.DataType.FLOAT, sizes
    if op in ("Imputer", "Binarizer"):
        return None if source is None or source.dtype is None else (source.dtype, sizes)
    if op == "LabelEncoder":
        given = next((dtype for name, dtype in _TYPE_OF_VALUES.items() if name in attributes), None)
        return None if given is None else (given, sizes)
    if op == "CategoryMapper":
        is_text = source is not None and source.dtype == ir.DataType.STRING
        return (ir.DataType.INT64 if is_text else ir.DataType.STRING), sizes
    if op == "OneHotEncoder":
        count = next((len(attributes[name].value) for name in _CATEGORIES if name in attributes), None)
        return ir.DataType.FLOAT, None if sizes is None or count is None else [*sizes, count]
    if op == "FeatureVectorizer" and "inputdimensions" in attributes:
        total = sum(attributes["inputdimensions"].as_ints())
        return ir.DataType.FLOAT, None if sizes is None else [sizes[0], total]
    return None
