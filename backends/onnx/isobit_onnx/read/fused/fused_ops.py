"""Operations that an optimiser has fused (com.microsoft), read into the plain operations that they stand for.

Source: onnxruntime, docs/ContribOperators.md, and its CPU kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from isobit_onnx.read.fused.fused_attention import attention, multi_head_attention
from isobit_onnx.read.rewrite import Rewrite, attribute, shape_of

MICROSOFT = "com.microsoft"

#: The results of a node in its place, None where a rank that the rule needs is not known, or a form has no rule.
Rule = Callable[[Rewrite, ir.Node], Sequence[ir.Value] | None]


def expand_fused(model: ir.Model, infer_shapes: Callable[[ir.Model], object]) -> None:
    """Take fused nodes apart, in place; what has no rule stays. `infer_shapes` tells ranks that a rule waits for."""
    while True:
        waiting = [(graph, node) for graph in model.graphs() for node in graph if _rule(node) is not None]
        left = [node for graph, node in waiting if not _expand(graph, node)]
        if len(left) == len(waiting):
            return
        infer_shapes(model)


def _rule(node: ir.Node) -> Rule | None:
    known = _RULES if node.domain == MICROSOFT else _IN_ONNX if not node.domain else {}
    return known.get(node.op_type)


def _expand(graph: ir.Graph, node: ir.Node) -> bool:
    rule, rewrite = _rule(node), Rewrite(graph, node)
    results = rule(rewrite, node) if rule is not None else None
    used = [index for index, value in enumerate(node.outputs) if value.uses() or value.is_graph_output()]
    if results is None or max(used, default=0) >= len(results):
        return False
    rewrite.finish(*results)
    return True


def _inputs(node: ir.Node, count: int) -> list[ir.Value | None]:
    """The first inputs, None where they are left out."""
    return [*node.inputs, *[None] * count][:count]


def _same_attributes(node: ir.Node, *without: str) -> dict[str, Any]:
    return {name: a.value for name, a in node.attributes.items() if name not in without}


def _activated(rewrite: Rewrite, x: ir.Value, name: str, numbers: Sequence[float]) -> ir.Value | None:
    """`x` behind the activation that was fused with what computes it."""
    if name in ("", "Relu", "Tanh", "Sigmoid", "Softplus", "Softsign", "HardSwish"):
        return rewrite.op(name, x) if name else x
    if name == "Clip" and len(numbers) == 2:
        return rewrite.op("Clip", x, rewrite.constant(numbers[0], "low"), rewrite.constant(numbers[1], "high"))
    keys = {"LeakyRelu": ("alpha",), "Elu": ("alpha",), "HardSigmoid": ("alpha", "beta")}.get(name)
    settings: dict[str, Any] = dict(zip(keys or (), map(float, numbers), strict=False))
    return None if keys is None else rewrite.op(name, x, **settings)


# --- layers ---------------------------------------------------------------------------------------------------------


def _fused_conv(rewrite: Rewrite, node: ir.Node) -> list[ir.Value] | None:
    x, weight, bias, summand = _inputs(node, 4)
    settings = _same_attributes(node, "activation", "activation_params")
    result = rewrite.op("Conv", x, weight, bias, **settings)
    if summand is not None:
        result = rewrite.op("Add", result, summand)
    numbers = attribute(node, "activation_params", ())
    activated = _activated(rewrite, result, str(attribute(node, "activation", "")), numbers)
    return None if activated is None else [activated]


def _fused_gemm(rewrite: Rewrite, node: ir.Node) -> list[ir.Value] | None:
    parameters = [f"activation_{name}" for name in ("alpha", "beta", "gamma")]
    settings = _same_attributes(node, "activation", *parameters)
    numbers = [attribute(node, name, None) for name in parameters]
    result = rewrite.op("Gemm", *_inputs(node, 3), **settings)
    given = [number for number in numbers if number is not None]
    activated = _activated(rewrite, result, str(attribute(node, "activation", "")), given)
    return None if activated is None else [activated]


def _fused_matmul(rewrite: Rewrite, node: ir.Node) -> list[ir.Value] | None:
    """Transposed operands, batch axes that stand in front of the last but one, and a factor."""
    operands = []
    for value, side in zip(_inputs(node, 2), "AB", strict=True):
        swapped, batch = attribute(node, f"trans{side}", 0), attribute(node, f"transBatch{side}", 0)
        shape = shape_of(value)
        if value is None or ((swapped or batch) and shape is None):
            return None
        order = list(range(len(shape or ())))
        if batch and len(order) > 2:  # (rows, batch..., columns)
            order = [*order[1:-1], order[0], order[-1]]
        if swapped and len(order) > 1:
            order = [*order[:-2], order[-1], order[-2]]
        operands.append(value if order == sorted(order) else rewrite.op("Transpose", value, perm=order))
    result = rewrite.op("MatMul", *operands)
    factor = float(attribute(node, "alpha", 1.0))
    return [result if factor == 1 else rewrite.op("Mul", result, rewrite.constant(factor, "alpha"))]


# --- norms ----------------------------------------------------------------------------------------------------------


def _skip_layer_norm(rewrite: Rewrite, node: ir.Node) -> list[ir.Value]:
    x, skip, scale, shift, bias = _inputs(node, 5)
    total = _sum(rewrite, x, bias, skip)
    epsilon = float(attribute(node, "epsilon", 1e-5))
    result = rewrite.op("LayerNormalization", total, scale, shift, outputs=3, axis=-1, epsilon=epsilon)
    norm = rewrite.nodes[-1]
    return [result, norm.outputs[1], norm.outputs[2], total]


def _skip_rms_norm(rewrite: Rewrite, node: ir.Node) -> list[ir.Value]:
    x, skip, scale, bias = _inputs(node, 4)
    total = _sum(rewrite, x, bias, skip)
    result, inverse = _rms_norm(rewrite, total, scale, -1, float(attribute(node, "epsilon", 1e-5)))
    return [result, inverse, inverse, total]


def _sum(rewrite: Rewrite, x: ir.Value | None, bias: ir.Value | None, skip: ir.Value | None) -> ir.Value:
    """The bias first: it belongs to the layer in front."""
    biased = x if bias is None else rewrite.op("Add", x, bias)
    return rewrite.op("Add", biased, skip)


def _simplified_layer_norm(rewrite: Rewrite, node: ir.Node) -> list[ir.Value] | None:
    x, scale = _inputs(node, 2)
    shape, axis = shape_of(x), int(attribute(node, "axis", -1))
    if x is None or (axis >= 0 and shape is None):
        return None
    axis = axis if axis < 0 else axis - len(shape or ())
    return _rms_norm(rewrite, x, scale, axis, float(attribute(node, "epsilon", 1e-5)))


def _rms_norm(
    rewrite: Rewrite, x: ir.Value, scale: ir.Value | None, axis: int, epsilon: float
) -> list[ir.Value]:  # fmt: skip
    """The norm, and one over the root mean square."""
    axes = rewrite.constant(list(range(axis, 0)), "axes", np.int64)
    power = rewrite.op("ReduceMean", rewrite.op("Mul", x, x), axes, keepdims=1)
    root = rewrite.op("Sqrt", rewrite.op("Add", power, rewrite.constant(epsilon, "epsilon")))
    inverse = rewrite.op("Reciprocal", root)
    result = rewrite.op("Mul", x, inverse)
    return [result if scale is None else rewrite.op("Mul", result, scale), inverse]


def _embed_layer_norm(rewrite: Rewrite, node: ir.Node) -> list[ir.Value] | None:
    """Words, positions and segments looked up, added and normalised; the number of tokens of each text."""
    ids, segments, words, places, kinds, scale, shift, mask, positions = _inputs(node, 9)
    if ids is None:
        return None
    if positions is None:
        zero, one = (rewrite.constant(n, f"number{n}", np.int64) for n in (0, 1))
        length = rewrite.op("Gather", rewrite.op("Shape", ids), one)
        positions = rewrite.op("Range", zero, length, one)
    total = rewrite.op("Add", rewrite.op("Gather", words, ids), rewrite.op("Gather", places, positions))
    if segments is not None and kinds is not None:
        total = rewrite.op("Add", total, rewrite.op("Gather", kinds, segments))
    epsilon = float(attribute(node, "epsilon", 1e-12))
    result = rewrite.op("LayerNormalization", total, scale, shift, axis=-1, epsilon=epsilon)
    axes = rewrite.constant([1], "axes", np.int64)
    if mask is None:  # then the kernel writes zeros
        mask = rewrite.op("Mul", ids, rewrite.constant(0, "none", np.int32))
    return [result, rewrite.op("ReduceSum", mask, axes, keepdims=0), total]


# --- activations ----------------------------------------------------------------------------------------------------


def _gelu(rewrite: Rewrite, node: ir.Node) -> list[ir.Value]:
    """Gelu, BiasGelu and FastGelu; the last is the approximation by tanh."""
    x, bias = _inputs(node, 2)
    biased = x if bias is None else rewrite.op("Add", x, bias)
    return [rewrite.op("Gelu", biased, approximate="tanh" if node.op_type == "FastGelu" else "none")]


def _quick_gelu(rewrite: Rewrite, node: ir.Node) -> list[ir.Value]:
    x, alpha = node.inputs[0], float(attribute(node, "alpha", 1.702))
    scaled = x if alpha == 1 else rewrite.op("Mul", x, rewrite.constant(alpha, "alpha"))
    return [rewrite.op("Mul", x, rewrite.op("Sigmoid", scaled))]


def _bias_softmax(rewrite: Rewrite, node: ir.Node) -> list[ir.Value] | None:
    x, bias = _inputs(node, 2)
    shape, axis = shape_of(x), int(attribute(node, "axis", 1))
    if axis != -1 and (shape is None or axis % len(shape) != len(shape) - 1):
        return None
    return [rewrite.op("Softmax", rewrite.op("Add", x, bias), axis=-1)]


_RULES: Mapping[str, Rule] = {
    "FusedConv": _fused_conv,
    "FusedGemm": _fused_gemm,
    "FusedMatMul": _fused_matmul,
    "TransposeMatMul": _fused_matmul,
    "SkipLayerNormalization": _skip_layer_norm,
    "SkipSimplifiedLayerNormalization": _skip_rms_norm,
    "SimplifiedLayerNormalization": _simplified_layer_norm,
    "EmbedLayerNormalization": _embed_layer_norm,
    "Attention": attention,
    "MultiHeadAttention": multi_head_attention,
    "Gelu": _gelu,
    "BiasGelu": _gelu,
    "FastGelu": _gelu,
    "QuickGelu": _quick_gelu,
    "BiasSoftmax": _bias_softmax,
}

#: onnxruntime keeps it in ONNX's own domain.
_IN_ONNX: Mapping[str, Rule] = {"SimplifiedLayerNormalization": _simplified_layer_norm}
