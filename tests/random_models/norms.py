"""Normalisations, in the spellings of exporters and as operations of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
from drawing import Drawing, RejectedError, Value


def reduce(d: Drawing, op: str, x: Value, axes: list[int], keepdims: int = 1, batched: bool | None = None) -> Value:
    """A reduction as its opset writes it."""
    if d.opset >= (13 if op == "ReduceSum" else 18):
        return d.add(op, [x, d.ints(*axes)], keepdims=keepdims, batched=batched)
    return d.add(op, [x], axes=axes, keepdims=keepdims, batched=batched)


def batch_norm(d: Drawing) -> Value:
    x = d.pick((2, 3, 4, 5))
    size = x.shape[1]
    operands = [d.vector(size, 0.5, 2), d.vector(size), d.vector(size), d.vector(size, 0.2, 2)]
    settings: dict[str, Any] = {"epsilon": d.one_of([1e-5, 1e-3])}
    if d.opset < 9 and d.chance(0.5):
        settings["spatial"] = 1
    if d.opset >= 14 and d.chance(0.3):
        settings["training_mode"] = 0
    return d.add("BatchNormalization", [x, *operands], **settings)


def instance_norm(d: Drawing) -> Value:
    x = d.pick((3, 4))
    if np.prod(x.shape[2:]) < 2:
        raise RejectedError("one value has no deviation")
    return d.add("InstanceNormalization", [x, d.vector(x.shape[1], 0.5, 2), d.vector(x.shape[1])])


def group_norm(d: Drawing) -> Value:
    """As an operation, or as PyTorch's exporter writes it: an InstanceNormalization between reshapes."""
    x = d.pick((3, 4))
    channels = x.shape[1]
    groups = d.one_of([g for g in (1, 2, 4) if channels % g == 0])
    if d.opset >= 18 and d.chance(0.5):
        size = channels if d.opset >= 21 else groups
        return d.add("GroupNormalization", [x, d.vector(size, 0.5, 2), d.vector(size)], num_groups=groups)
    flat = d.add("Reshape", [x, d.ints(0, groups, -1)])
    ones = np.ones(groups, np.float32)
    normed = d.add("InstanceNormalization", [flat, d.constant(ones), d.constant(0 * ones)])
    y = d.add("Reshape", [normed, d.ints(0, *x.shape[1:])])
    shape = (channels, *[1] * (x.rank - 2))
    y = d.add("Mul", [y, d.constant(d.rng.uniform(0.5, 2, shape).astype(np.float32))])
    return d.add("Add", [y, d.constant(d.rng.uniform(-0.5, 0.5, shape).astype(np.float32))])


def layer_norm(d: Drawing) -> Value:
    x = d.pick((2, 3, 4))
    if x.shape[-1] < 2:
        raise RejectedError("one value has no deviation")
    if d.opset >= 17 and d.chance(0.5):
        bias = [d.vector(x.shape[-1])] if d.chance(0.7) else []
        return d.add("LayerNormalization", [x, d.vector(x.shape[-1], 0.5, 2), *bias], axis=-1)
    axes = [-1] if d.opset >= 11 or d.chance(0.5) else [x.rank - 1]
    centred = d.add("Sub", [x, reduce(d, "ReduceMean", x, axes)])
    square = d.add("Mul", [centred, centred]) if d.chance(0.5) else d.add("Pow", [centred, d.constant(np.float32(2))])
    variance = reduce(d, "ReduceMean", square, axes)
    root = d.add("Sqrt", [d.add("Add", [variance, d.constant(np.float32(1e-5))])])
    y = d.add("Div", [centred, root]) if d.chance(0.5) else d.add("Mul", [centred, d.add("Reciprocal", [root])])
    if d.chance(0.7):
        y = d.add("Add", [d.add("Mul", [y, d.vector(x.shape[-1], 0.5, 2)]), d.vector(x.shape[-1])])
    return y


def rms_norm(d: Drawing) -> Value:
    x = d.pick((2, 3, 4))
    if d.opset >= 23 and d.chance(0.5):
        return d.add("RMSNormalization", [x, d.vector(x.shape[-1], 0.5, 2)], axis=-1)
    square = d.add("Pow", [x, d.constant(np.float32(2))]) if d.chance(0.5) else d.add("Mul", [x, x])
    mean = reduce(d, "ReduceMean", square, [x.rank - 1])
    root = d.add("Sqrt", [d.add("Add", [mean, d.constant(np.float32(1e-4))])])
    y = d.add("Div", [x, root]) if d.chance(0.5) else d.add("Mul", [x, d.add("Reciprocal", [root])])
    return d.add("Mul", [y, d.vector(x.shape[-1], 0.5, 2)])


def lp_norm(d: Drawing) -> Value:
    x = d.pick((2, 3, 4))
    return d.add("LpNormalization", [x], axis=x.rank - 1, p=d.integer(1, 2))


def lrn(d: Drawing) -> Value:
    x = d.pick((4,))
    return d.add("LRN", [x], size=3, alpha=1e-3)


def mean_variance(d: Drawing) -> Value:
    if d.opset < 9:
        raise RejectedError("not in this opset")
    x = d.pick((4,))
    return d.add("MeanVarianceNormalization", [x], axes=[2, 3] if d.chance(0.5) else [1, 2, 3])


def l2_norm(d: Drawing) -> Value:
    """A vector by its length, as it is written for embeddings."""
    x = d.pick((2, 3))
    length = reduce(d, "ReduceL2", x, [x.rank - 1])
    if d.opset >= 11:
        length = d.add("Clip", [length, d.constant(np.float32(1e-6))])
    else:
        length = d.add("Max", [length, d.constant(np.full(1, 1e-6, np.float32))])
    return d.add("Div", [x, length])


NORMS = (batch_norm, batch_norm, instance_norm, group_norm, layer_norm, rms_norm, lp_norm, lrn, mean_variance, l2_norm)
