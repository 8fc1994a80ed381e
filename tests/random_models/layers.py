"""Layers with weights, in every form that they are written in."""

from __future__ import annotations

from typing import Any

import numpy as np
from drawing import Drawing, RejectedError, Value


def _window(d: Drawing, x: Value) -> dict[str, Any]:
    spatial = x.rank - 2
    sizes = x.shape[2:]
    kernel = [d.integer(1, min(3, size)) for size in sizes]
    settings: dict[str, Any] = {"kernel_shape": kernel}
    if d.chance(0.5):
        settings["strides"] = [d.integer(1, 2) for _ in range(spatial)]
    if d.chance(0.3):
        settings["auto_pad"] = d.one_of(["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"])
    if settings.get("auto_pad", "NOTSET") == "NOTSET" and d.chance(0.6):
        settings["pads"] = [d.integer(0, k // 2) for k in kernel] + [d.integer(0, k // 2) for k in kernel]
    return settings


def conv(d: Drawing) -> Value:
    x = d.pick((3, 4, 5))
    channels = x.shape[1]
    settings = _window(d, x)
    group = d.one_of([g for g in (1, 1, 1, 2, 3, channels) if channels % g == 0])
    out = group * d.integer(1, 3 if group > 1 else 8)
    if "auto_pad" not in settings and d.chance(0.25):
        pairs = zip(x.shape[2:], settings["kernel_shape"], strict=True)
        settings["dilations"] = [2 if size >= 2 * k else 1 for size, k in pairs]
    if group > 1:
        settings["group"] = group
    weight = d.weight(out, channels // group, *settings["kernel_shape"])
    if d.chance(0.3):
        del settings["kernel_shape"]
    bias = [d.vector(out)] if d.chance(0.7) else []
    return d.add("Conv", [x, weight, *bias], **settings)


def block(d: Drawing) -> Value:
    """A convolution with what mostly stands behind it, and now and then a path around it."""
    x = d.pick((4,))
    channels = x.shape[1]
    group = d.one_of([1, 1, channels])
    weight = d.weight(channels, channels // group, 3, 3)
    y = d.add("Conv", [x, weight, *([d.vector(channels)] if d.chance(0.5) else [])], pads=[1] * 4, group=group)
    if d.chance(0.6):
        operands = [d.vector(channels, 0.5, 2), d.vector(channels), d.vector(channels), d.vector(channels, 0.2, 2)]
        y = d.add("BatchNormalization", [y, *operands])
    if d.chance(0.4):
        y = d.add("Add", [x, y] if d.chance(0.5) else [y, x])
    return d.add("Relu", [y]) if d.chance(0.7) else y


def conv_transpose(d: Drawing) -> Value:
    x = d.pick((3, 4))
    channels, spatial = x.shape[1], x.rank - 2
    group = d.one_of([g for g in (1, 1, 2) if channels % g == 0])
    out = d.integer(1, 4)
    kernel = [d.integer(1, 3) for _ in range(spatial)]
    strides = [d.integer(1, 2) for _ in range(spatial)]
    settings: dict[str, Any] = {"strides": strides, "group": group}
    if d.chance(0.3):
        settings["auto_pad"] = d.one_of(["SAME_UPPER", "SAME_LOWER", "VALID"])
    elif d.chance(0.5):
        settings["pads"] = [k // 2 for k in kernel] * 2
    if d.chance(0.3) and "auto_pad" not in settings:
        settings["output_padding"] = [s - 1 for s in strides]
    bias = [d.vector(out * group)] if d.chance(0.6) else []
    weight = d.weight(channels, out, *kernel, scale=1 / np.sqrt(channels * np.prod(kernel)))
    return d.add("ConvTranspose", [x, weight, *bias], **settings)


def gemm(d: Drawing) -> Value:
    x = d.pick((2,))
    rows, inner = x.shape
    out = d.integer(1, 10)
    settings: dict[str, Any] = {}
    if d.chance(0.3):
        settings["alpha"] = float(np.round(d.rng.uniform(0.25, 2), 2))
    if d.chance(0.3):
        settings["beta"] = float(np.round(d.rng.uniform(0.25, 2), 2))
    trans_b = d.chance(0.5)
    if trans_b:
        settings["transB"] = 1
    weight = d.weight(out, inner) if trans_b else d.weight(inner, out)
    addends = [[d.vector(out)], [d.constant(d.rng.uniform(-1, 1, (1, out)).astype(np.float32))]]
    addends.append([d.constant(np.float32(0.25))])
    if d.opset >= 11:
        addends.append([])
    same = [v for v in d.values if v.shape == (rows, out) and v.is_float]
    addends += [[value] for value in same[-1:]]
    return d.add("Gemm", [x, weight, *d.one_of(addends)], **settings)


def gemm_from_the_left(d: Drawing) -> Value:
    """A constant times an activation, transposed where axes must meet."""
    if not d.fixed_batch:
        raise RejectedError("the batch would be the inner axis")
    x = d.pick((2,))
    out = d.integer(1, 6)
    if d.chance(0.5):
        return d.add("Gemm", [d.weight(out, x.shape[1]), x, d.vector(x.shape[0])], batched=False, transB=1)
    return d.add("Gemm", [x, d.weight(x.shape[0], out), d.vector(out)], batched=False, transA=1)


def matmul(d: Drawing) -> Value:
    x = d.pick((2, 3, 4))
    y = d.add("MatMul", [x, d.weight(x.shape[-1], d.integer(1, 10))])
    if d.chance(0.6):
        bias = d.vector(y.shape[-1])
        y = d.add("Add", [y, bias] if d.chance(0.7) else [bias, y])
    return y


def matmul_from_the_left(d: Drawing) -> Value:
    x = d.pick((3, 4))
    return d.add("MatMul", [d.weight(d.integer(1, 8), x.shape[-2]), x])


def matmul_batched(d: Drawing) -> Value:
    x = d.pick((3, 4))
    lead = x.shape[1:-2] or ((x.shape[0] if d.fixed_batch else 1),)
    return d.add("MatMul", [x, d.weight(*lead, x.shape[-1], d.integer(1, 6))])


def matmul_dynamic(d: Drawing) -> Value:
    x = d.pick((3, 4))
    others = [v for v in d.values if v.is_float and v.shape == x.shape and v.batched]
    perm = [*range(x.rank - 2), x.rank - 1, x.rank - 2]
    y = d.add("Transpose", [d.one_of(others)], perm=perm)
    scores = d.add("MatMul", [x, y])
    scores = d.add("Mul", [scores, d.constant(np.float32(1 / np.sqrt(x.shape[-1])))])
    if d.chance(0.6):
        weights = d.add("Softmax", [scores], axis=-1 if d.opset >= 13 or d.chance(0.5) else x.rank - 1)
        return d.add("MatMul", [weights, x])
    return scores


def einsum(d: Drawing) -> Value:
    if d.opset < 12:
        raise RejectedError("not in this opset")
    x = d.pick((2, 3, 4))
    if x.rank == 2:
        equation, weight = d.one_of([("bi,io->bo", (x.shape[1], 5)), ("bi,oi->bo", (5, x.shape[1]))])
    elif x.rank == 3:
        forms = [
            ("bti,io->bto", (x.shape[2], 4)),
            ("bti,oi->bto", (4, x.shape[2])),
            ("bti, ihd -> bthd", (x.shape[2], 2, 3)),
            ("bit,io->bot", (x.shape[1], 4)),
            ("bti,tio->bto", (x.shape[1], x.shape[2], 2)),
        ]
        equation, weight = d.one_of(forms)
    else:
        forms = [("bchw,co->bohw", (x.shape[1], 4)), ("bthd,hdo->bto", (x.shape[2], x.shape[3], 4))]
        equation, weight = d.one_of(forms)
    return d.add("Einsum", [x, d.weight(*weight, scale=0.4)], equation=equation)


def recurrent(d: Drawing) -> Value:
    """Time first, as ONNX wants it: batch second."""
    x = d.pick((3,))
    op, gates = d.one_of([("LSTM", 4), ("GRU", 3), ("RNN", 1)])
    direction = d.one_of(["forward", "forward", "reverse", "bidirectional"])
    ways, hidden = (2 if direction == "bidirectional" else 1), d.integer(2, 5)
    sequence = d.add("Transpose", [x], perm=[1, 0, 2], batched=False)
    w = d.weight(ways, gates * hidden, x.shape[2], scale=0.4)
    r = d.weight(ways, gates * hidden, hidden, scale=0.4)
    b = d.constant(d.rng.uniform(-0.3, 0.3, (ways, 2 * gates * hidden)).astype(np.float32)) if d.chance(0.7) else None
    settings: dict[str, Any] = {"direction": direction, "hidden_size": hidden}
    if op == "GRU" and d.chance(0.5):
        settings["linear_before_reset"] = 1
    if d.chance(0.3) and d.fixed_batch:
        lengths: Value | None = d.constant(np.full(x.shape[0], x.shape[1], np.int32))
    else:
        lengths = None
    outputs = 3 if op == "LSTM" else 2
    y, last, *_ = d.add_several(op, [sequence, w, r, b, lengths], outputs, batched=False, **settings)
    if d.chance(0.3):  # the last state: ways, batch, hidden
        return d.add("Transpose", [last], perm=[1, 0, 2], batched=True)
    if ways == 1 and d.chance(0.5):
        axes = [1]
        flat = d.add("Squeeze", [y], axes=axes) if d.opset < 13 else d.add("Squeeze", [y, d.ints(*axes)])
        return d.add("Transpose", [flat], perm=[1, 0, 2], batched=True)
    y = d.add("Transpose", [y], perm=[2, 0, 1, 3], batched=True)
    return d.add("Reshape", [y, d.ints(0, 0, -1)])


def embedding(d: Drawing) -> Value:
    index = d.pick((1, 2, 3), kind="int")
    top = int(index.array.max())
    if index.array.min() < 0 or top > 40:
        raise RejectedError("no index")
    return d.add("Gather", [d.weight(max(top + 1, 41), d.integer(2, 6), scale=1.0), index], batched=index.batched)


def scatter(d: Drawing) -> Value:
    """A few rows of a fixed tensor are put in place of others."""
    x = d.pick((2, 3, 4))
    if not d.fixed_batch or d.opset < 11:
        raise RejectedError("rows are counted")
    row = d.integer(0, x.shape[0] - 1)
    updates = d.constant(d.rng.standard_normal((1, *x.shape[1:])).astype(np.float32))
    return d.add("ScatterND", [x, d.constant(np.array([[row]], np.int64)), updates])


LAYERS = (
    conv,
    conv,
    conv,
    block,
    block,
    block,
    conv_transpose,
    gemm,
    gemm,
    gemm_from_the_left,
    matmul,
    matmul,
    matmul_from_the_left,
    matmul_batched,
    matmul_dynamic,
    einsum,
    recurrent,
    embedding,
    scatter,
)
