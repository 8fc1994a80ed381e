"""Products with a constant matrix in the one form that is a linear layer: data on the left, a vector as the bias.

Gemm's factors go into its constants; a constant on the left changes sides between two transpositions; a bias of one
number becomes a vector. What a product cannot hold (a computed summand, one for each row) follows as Add.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from isobit_onnx.read.rewrite import (
    Rewrite,
    attribute,
    changed_constant,
    constant_of,
    is_weight,
    new_constant,
    shape_of,
)


def unify_products(model: ir.Model) -> None:
    """Bring every Gemm and MatMul to the form of a linear layer, in place; ranks must be known."""
    for op, unify in (("Gemm", _gemm), ("MatMul", _matmul), ("Add", _bias)):
        for node in list(model.graph):
            if node.op_type == op and not node.domain:
                unify(model.graph, node)


# --- Gemm -----------------------------------------------------------------------------------------------------------


def _gemm(graph: ir.Graph, node: ir.Node) -> None:
    a, b = node.inputs[0], node.inputs[1]
    c = node.inputs[2] if len(node.inputs) > 2 else None
    alpha, beta = float(attribute(node, "alpha", 1.0)), float(attribute(node, "beta", 1.0))
    trans_a, trans_b = bool(attribute(node, "transA", 0)), bool(attribute(node, "transB", 0))
    if a is None or b is None or a.dtype not in (None, ir.DataType.FLOAT) or (is_weight(a) and is_weight(b)):
        return
    rewrite = Rewrite(graph, node)
    if not is_weight(a) and not is_weight(b):
        _product_of_data(rewrite, (a, b, c), (alpha, beta), (trans_a, trans_b))
        return
    if is_weight(b):
        out = (shape_of(b) or (0, 0))[0 if trans_b else 1] or 0
        bias = _vector(constant_of(c), out, 0)
        if alpha == 1 and not trans_a and (c is None or (beta == 1 and _is_plain_bias(c, out))):
            return
        x = rewrite.op("Transpose", a, perm=[1, 0]) if trans_a else a
        weight, turned = b, trans_b
    else:  # y = A x is, transposed, a product with A on the right
        out = (shape_of(a) or (0, 0))[1 if trans_a else 0] or 0
        bias = _vector(constant_of(c), out, 1)
        x = b if trans_b else rewrite.op("Transpose", b, perm=[1, 0])
        weight, turned = a, not trans_a
    weight = _scaled(graph, weight, alpha)
    has_vector = bias is not None and c is not None
    vector = changed_constant(graph, c, (bias * np.float32(beta)), "vector") if bias is not None and c else None
    result = rewrite.op("Gemm", x, weight, vector, transB=int(turned))
    if not is_weight(b):
        result = rewrite.op("Transpose", result, perm=[1, 0])
    if c is not None and not has_vector:
        result = rewrite.op("Add", result, _times(rewrite, c, beta, "beta"))
    rewrite.finish(result)


def _product_of_data(
    rewrite: Rewrite,
    operands: tuple[ir.Value, ir.Value, ir.Value | None],
    factors: tuple[float, float],
    transposed: tuple[bool, bool],
) -> None:
    a, b, c = operands
    left, right = (
        rewrite.op("Transpose", value, perm=[1, 0]) if turned else value
        for value, turned in zip((a, b), transposed, strict=True)
    )
    result = _times(rewrite, rewrite.op("MatMul", left, right), factors[0], "alpha")
    rewrite.finish(result if c is None else rewrite.op("Add", result, _times(rewrite, c, factors[1], "beta")))


def _times(rewrite: Rewrite, value: ir.Value, factor: float, name: str) -> ir.Value:
    return value if factor == 1 else rewrite.op("Mul", value, rewrite.constant(factor, name))


def _scaled(graph: ir.Graph, weight: ir.Value, factor: float) -> ir.Value:
    array = constant_of(weight)
    if factor == 1 or array is None:
        return weight
    return changed_constant(graph, weight, array * array.dtype.type(factor), "scaled")


def _is_plain_bias(value: ir.Value, out: int) -> bool:
    return is_weight(value) and shape_of(value) in ((out,), (1, out))


def _vector(bias: NDArray[Any] | None, out: int, axis: int) -> NDArray[Any] | None:
    """A bias as one number an output; `axis` is where its matrix may have 1 instead of a size."""
    if bias is None or bias.dtype.kind != "f":
        return None
    if bias.size == 1:
        return np.full(out, bias.reshape(-1)[0])
    shape = (1,) * (2 - bias.ndim) + bias.shape
    return bias.reshape(-1) if shape == ((1, out) if axis == 0 else (out, 1)) else None


# --- MatMul ---------------------------------------------------------------------------------------------------------


def _matmul(graph: ir.Graph, node: ir.Node) -> None:
    left, right = node.inputs
    if left is None or right is None or is_weight(left) == is_weight(right):
        return
    if is_weight(right):
        _constant_on_the_right(graph, node, left, right)
    else:
        _constant_on_the_left(graph, node, left, right)


def _constant_on_the_right(graph: ir.Graph, node: ir.Node, x: ir.Value, weight: ir.Value) -> None:
    sizes, source = shape_of(weight) or (), shape_of(x)
    array = constant_of(weight)
    if array is None:
        return
    if len(sizes) == 1:
        rewrite = Rewrite(graph, node)
        column = changed_constant(graph, weight, array.reshape(-1, 1), "column")
        product = rewrite.op("MatMul", x, column)
        rewrite.finish(rewrite.op("Squeeze", product, rewrite.constant([-1], "axis", np.int64)))
    elif len(sizes) > 2 and set(sizes[:-2]) == {1} and source is not None and len(source) >= len(sizes):
        node.replace_input_with(1, changed_constant(graph, weight, array.reshape(array.shape[-2:]), "matrix"))


def _constant_on_the_left(graph: ir.Graph, node: ir.Node, weight: ir.Value, x: ir.Value) -> None:
    source, array = shape_of(x), constant_of(weight)
    if source is None or len(source) < 2 or array is None:
        return
    rewrite = Rewrite(graph, node)
    turned = rewrite.op("Transpose", x, perm=_last_two_swapped(len(source)))
    if array.ndim == 1:
        column = changed_constant(graph, weight, array.reshape(-1, 1), "column")
        product = rewrite.op("MatMul", turned, column)
        rewrite.finish(rewrite.op("Squeeze", product, rewrite.constant([-1], "axis", np.int64)))
        return
    while array.ndim > 2 and array.shape[0] == 1 and array.ndim <= len(source):
        array = array[0]
    swapped = array.swapaxes(-1, -2)
    if len(weight.uses()) == 1:
        matrix = changed_constant(graph, weight, swapped, "transposed")
    else:  # a view, so that the constant stays one for all its readers
        matrix = rewrite.op("Transpose", weight, perm=_last_two_swapped(len(weight.shape or ())))
        array = array.reshape(tuple(n for n in weight.shape or () if isinstance(n, int)))
    rank = max(len(source), array.ndim)
    rewrite.finish(rewrite.op("Transpose", rewrite.op("MatMul", turned, matrix), perm=_last_two_swapped(rank)))


def _last_two_swapped(rank: int) -> list[int]:
    return [*range(rank - 2), rank - 1, rank - 2]


# --- bias -----------------------------------------------------------------------------------------------------------


def _bias(graph: ir.Graph, node: ir.Node) -> None:
    """A bias of one number, or with axes of size 1 in front, as a vector."""
    for index in (0, 1):
        product, bias = node.inputs[index], node.inputs[1 - index]
        layer = product.producer() if product is not None else None
        if layer is None or bias is None or layer.op_type not in ("MatMul", "Gemm") or layer.domain:
            continue
        weight, rank = shape_of(layer.inputs[1]), len(product.shape or ()) if product is not None else 0
        array = constant_of(bias)
        if not is_weight(layer.inputs[1]) or weight is None or len(weight) != 2 or array is None or array.ndim > rank:
            continue
        out = weight[0 if layer.op_type == "Gemm" and attribute(layer, "transB", 0) else 1]
        if out is None or array.shape == (out,) or array.dtype.kind != "f":
            continue
        if array.size == 1:
            array = np.full(out, array.reshape(-1)[0])
        elif array.shape != (*(1,) * (array.ndim - 1), out):
            continue
        readers = len(bias.uses())
        vector = new_constant(graph, array, f"{bias.name}.vector") if readers > 1 else None
        if vector is None:
            vector = changed_constant(graph, bias, array.reshape(out), "vector")
        node.replace_input_with(1 - index, vector)
        return
