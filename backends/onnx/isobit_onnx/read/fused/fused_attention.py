"""Attention of com.microsoft as projections, products and a softmax.

Source: onnxruntime, docs/ContribOperators.md and contrib_ops/cpu/bert/attention_helper.h.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from isobit_onnx.read.rewrite import Rewrite, attribute, shape_of

_HEADS_IN_FRONT = [0, 2, 1, 3]


@dataclass(frozen=True)
class _Scores:
    """What changes the scores of one attention before the softmax."""

    scale: float | None
    mask: ir.Value | None
    mask_value: float
    summand: ir.Value | None
    is_causal: bool


def attention(rewrite: Rewrite, node: ir.Node) -> Sequence[ir.Value] | None:
    """Self-attention with one packed projection; None for the forms of the mask and of the cache that have no rule."""
    x, weights, bias, mask, past, summand, past_length = [*node.inputs, *[None] * 7][:7]
    packed = shape_of(weights)
    if x is None or weights is None or packed is None or packed[-1] is None or past_length is not None:
        return None
    sizes = [int(n) for n in attribute(node, "qkv_hidden_sizes", None) or [packed[-1] // 3] * 3]
    heads = int(attribute(node, "num_heads", 1))
    if attribute(node, "do_rotary", 0) or not _has_rule(mask, x) or sum(sizes) != packed[-1]:
        return None
    projected = []
    kernels = _parts(rewrite, weights, sizes, 1)
    biases: Sequence[ir.Value | None] = _parts(rewrite, bias, sizes, 0) if bias is not None else (None, None, None)
    for kernel, shift in zip(kernels, biases, strict=True):
        product = rewrite.op("MatMul", x, kernel)
        projected.append(product if shift is None else rewrite.op("Add", product, shift))
    cache = None
    if past is not None:
        first, second = (rewrite.constant(n, f"cached{n}", np.int64) for n in (0, 1))
        cache = rewrite.op("Gather", past, first, axis=0), rewrite.op("Gather", past, second, axis=0)
    result, keys, values = _attend(rewrite, projected, sizes, heads, cache, _scores(node, mask, summand))
    if len(node.outputs) < 2:
        return [result]
    axis = rewrite.constant([0], "front", np.int64)
    stacked = [rewrite.op("Unsqueeze", part, axis) for part in (keys, values)]
    return [result, rewrite.op("Concat", *stacked, axis=0)]


def multi_head_attention(rewrite: Rewrite, node: ir.Node) -> Sequence[ir.Value] | None:
    """Attention whose query, key and value are given as (batch, length, size)."""
    inputs: list[ir.Value | None] = [*node.inputs, *[None] * 8]
    (query, key, value, bias, mask, summand, past_key, past_value), more = inputs[:8], inputs[8:]
    shapes = [shape_of(operand) for operand in (query, key, value)]
    if query is None or key is None or value is None or any(operand is not None for operand in more):
        return None
    sizes = [shape[-1] for shape in shapes if shape is not None and len(shape) == 3 and shape[-1] is not None]
    if len(sizes) < 3 or not _has_rule(mask, key):
        return None
    operands = [query, key, value]
    if bias is not None:
        parts = _parts(rewrite, bias, sizes, 0)
        operands = [rewrite.op("Add", operand, part) for operand, part in zip(operands, parts, strict=True)]
    cache = (past_key, past_value) if past_key is not None and past_value is not None else None
    heads = int(attribute(node, "num_heads", 1))
    return _attend(rewrite, operands, sizes, heads, cache, _scores(node, mask, summand))


def _scores(node: ir.Node, mask: ir.Value | None, summand: ir.Value | None) -> _Scores:
    scale, mask_value = attribute(node, "scale", 0.0), float(attribute(node, "mask_filter_value", -10000.0))
    return _Scores(float(scale) or None, mask, mask_value, summand, bool(attribute(node, "unidirectional", 0)))


def _has_rule(mask: ir.Value | None, x: ir.Value) -> bool:
    """Lengths (batch,), or a mask (batch, keys) or (batch, queries, keys); not ends beside starts, which are longer."""
    if mask is None:
        return True
    shape = mask.shape
    if shape is None:
        return False
    return len(shape) in (2, 3) or (len(shape) == 1 and x.shape is not None and shape[0] == x.shape[0])


def _parts(rewrite: Rewrite, packed: ir.Value, sizes: Sequence[int], axis: int) -> list[ir.Value]:
    """The parts of packed constants for query, key and value, named after the whole."""
    rewrite.op("Split", packed, rewrite.constant(list(sizes), f"sizes{axis}", np.int64), outputs=3, axis=axis)
    parts = list(rewrite.nodes[-1].outputs)
    for part, letter in zip(parts, "qkv", strict=True):
        part.name = f"{packed.name}.{letter}" if len(packed.uses()) == 2 else part.name
    return parts


def _attend(
    rewrite: Rewrite,
    operands: Sequence[ir.Value],
    sizes: Sequence[int],
    heads: int,
    cache: tuple[ir.Value, ir.Value] | None,
    change: _Scores,
) -> list[ir.Value]:
    """The result, and keys and values by heads with those of the cache in front."""
    query, key, value = (
        rewrite.op("Transpose", _by_heads(rewrite, operand, heads, size), perm=_HEADS_IN_FRONT)
        for operand, size in zip(operands, sizes, strict=True)
    )
    if cache is not None:
        key, value = (rewrite.op("Concat", old, new, axis=2) for old, new in zip(cache, (key, value), strict=True))
    scores = rewrite.op("MatMul", query, rewrite.op("Transpose", key, perm=[0, 1, 3, 2]))
    scale = change.scale or float(1 / np.sqrt(sizes[0] // heads))
    scores = rewrite.op("Mul", scores, rewrite.constant(scale, "scale"))
    if change.summand is not None:
        scores = rewrite.op("Add", scores, change.summand)
    if change.mask is not None:
        scores = rewrite.op("Add", scores, _mask(rewrite, change.mask, change.mask_value, key))
    if change.is_causal:
        scores = rewrite.op("Add", scores, _causal_mask(rewrite, query, key))
    weighted = rewrite.op("MatMul", rewrite.op("Softmax", scores, axis=-1), value)
    shape = rewrite.constant([0, 0, sizes[2]], "joined", np.int64)
    return [rewrite.op("Reshape", rewrite.op("Transpose", weighted, perm=_HEADS_IN_FRONT), shape), key, value]


def _by_heads(rewrite: Rewrite, operand: ir.Value, heads: int, size: int) -> ir.Value:
    return rewrite.op("Reshape", operand, rewrite.constant([0, 0, heads, size // heads], "heads", np.int64))


def _length(rewrite: Rewrite, value: ir.Value) -> ir.Value:
    """The size of axis 2, as a number."""
    return rewrite.op("Gather", rewrite.op("Shape", value), rewrite.constant(2, "axis", np.int64))


def _mask(rewrite: Rewrite, mask: ir.Value, number: float, key: ir.Value) -> ir.Value:
    """0 where a key is read, `number` elsewhere, by batch, head, query and key."""
    rank = len(mask.shape or ())
    if rank == 1:
        zero, one = (rewrite.constant(n, f"number{n}", np.int64) for n in (0, 1))
        places = rewrite.op("Range", zero, _length(rewrite, key), one)
        lengths = rewrite.op("Cast", mask, to=int(ir.DataType.INT64))
        is_read = rewrite.op("Less", places, rewrite.op("Unsqueeze", lengths, rewrite.constant([1], "a", np.int64)))
    else:
        is_read = rewrite.op("Cast", mask, to=int(ir.DataType.BOOL))
    spread = rewrite.constant([1] if rank == 3 else [1, 2], "spread", np.int64)
    by_head = rewrite.op("Unsqueeze", is_read, spread)
    return rewrite.op("Where", by_head, rewrite.constant(0.0, "read"), rewrite.constant(number, "hidden"))


def _causal_mask(rewrite: Rewrite, query: ir.Value, key: ir.Value) -> ir.Value:
    """The lowest number where a key lies behind its query, 0 elsewhere."""
    queries, keys = _length(rewrite, query), _length(rewrite, key)
    axis = rewrite.constant([0], "flat", np.int64)
    shape = rewrite.op("Concat", *(rewrite.op("Unsqueeze", n, axis) for n in (queries, keys)), axis=0)
    lowest = ir.Tensor(np.array([np.finfo(np.float32).min], np.float32), name="lowest")
    filled = rewrite.op("ConstantOfShape", shape, value=lowest)
    behind = rewrite.op("Add", rewrite.op("Sub", keys, queries), rewrite.constant(1, "one", np.int64))
    return rewrite.op("Trilu", filled, behind, upper=1)
