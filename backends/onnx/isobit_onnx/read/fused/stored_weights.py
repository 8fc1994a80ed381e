"""Weights that a tool has quantized by themselves: integers behind a DequantizeLinear, between float activations.

They are read as the floats that they stand for, by ONNX's definition of DequantizeLinear. What quantizes activations
too is another network than the float one, and refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from isobit_onnx.read.initializers import add_initializer

#: Where a model says in which types its weights were stored, also in files written of it.
METADATA = "isobit.weights_were"

#: How tools call the integers of a constant; what is left is the constant's name.
ENDINGS = ("_quantized", "_QuantizeLinear_Output", "_q")

#: The operations whose grids isobit reads out of a file.
QDQ = frozenset({"QuantizeLinear", "DequantizeLinear"})

_QUANTIZED = QDQ | {"DynamicQuantizeLinear", "ConvInteger", "MatMulInteger"}
_DOMAINS = ("", "ai.onnx", "com.microsoft")


def quantizes_activations(model: ir.Model) -> str | None:
    """The first operation of the main graph that computes with quantized activations; None in a float network."""
    for node in model.graph:
        is_quantized = node.op_type in _QUANTIZED or node.op_type.startswith("QLinear")
        if is_quantized and _operands(node) is None:
            return str(node.op_type)
    return None


def widen_stored_weights(model: ir.Model) -> None:
    """Put the floats that they stand for in place of stored integers, in the whole model."""
    types: set[str] = set()
    for graph in model.graphs():
        known: dict[Any, ir.Value] = {}
        for node, (levels, scale, zeros) in list(_dequantizers(graph)):
            settings = tuple(sorted((name, a.value) for name, a in node.attributes.items()))
            key = (*node.inputs, *settings)
            if key not in known:
                array = _dequantized(node, levels, scale, zeros)
                known[key] = add_initializer(graph, ir.Tensor(array, name=_free_name(model, node)))
                types.add(levels.dtype.name.lower())
            _replace(graph, node, known[key])
    if types:
        model.metadata_props[METADATA] = ", ".join(sorted(types))


def _dequantizers(graph: ir.Graph) -> Iterator[tuple[ir.Node, tuple[Any, Any, Any]]]:
    for node in graph:
        operands = _operands(node)
        if operands is not None and not node.outputs[0].is_graph_output():
            yield node, operands


def _operands(node: ir.Node) -> tuple[Any, Any, Any] | None:
    """Levels, scale and zero point (or None) of a DequantizeLinear of constants."""
    if node.op_type != "DequantizeLinear" or node.domain not in _DOMAINS or len(node.inputs) < 2:
        return None
    levels, scale, zeros = [
        None if value is None else ir.convenience.get_const_tensor(value) for value in [*node.inputs, None][:3]
    ]
    has_zeros = len(node.inputs) > 2 and node.inputs[2] is not None
    if levels is None or scale is None or (has_zeros and zeros is None):
        return None
    return levels, scale, zeros


def _dequantized(node: ir.Node, levels: Any, scale: Any, zeros: Any) -> NDArray[Any]:
    """(levels - zero point) * scale in float32, rounded once more where the result has fewer bits."""
    array, steps = levels.numpy(), scale.numpy()
    axis, block = node.attributes.get_int("axis", 1), node.attributes.get_int("block_size", 0)

    def spread(numbers: NDArray[Any]) -> NDArray[Any]:
        """One number for each level."""
        if numbers.size == 1 and not block:
            return numbers.reshape(())
        along = axis % array.ndim
        if block:
            return np.repeat(numbers, block, along).take(np.arange(array.shape[along]), along)
        return numbers.reshape([-1 if place == along else 1 for place in range(array.ndim)])

    is_integer = levels.dtype.is_integer()
    differences = array.astype(np.int64 if is_integer else np.float32)
    if zeros is not None and is_integer:
        differences = differences - spread(zeros.numpy().astype(np.int64))
    floats = differences.astype(np.float32) * spread(steps.astype(np.float32))
    return np.ascontiguousarray(floats.astype(steps.dtype))


def _free_name(model: ir.Model, node: ir.Node) -> str:
    """The name that the float weight had, as far as the file tells."""
    stored, result = node.inputs[0], node.outputs[0]
    name = (stored.name if stored is not None else None) or ""
    stem = next((name.removesuffix(end) for end in ENDINGS if name.endswith(end)), name)
    for graph in model.graphs():
        values = (value for n in graph for value in n.outputs if value is not result)
        taken = {value.name for value in (*values, *graph.inputs)} | set(graph.initializers)
        if stem in taken - {name} or not stem:
            stem = f"{result.name}/stored"
            break
    if stem == name and stored is not None:
        stored.name = f"{name}/integers"
    return stem


def _replace(graph: ir.Graph, node: ir.Node, weight: ir.Value) -> None:
    ir.convenience.replace_all_uses_with(node.outputs[0], weight)
    graph.remove(node, safe=True)
