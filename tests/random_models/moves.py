"""Pooling, and operations that move values or change shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
from drawing import Drawing, RejectedError, Value
from layers import _window
from norms import reduce


def pool(d: Drawing) -> Value:
    x = d.pick((3, 4, 5))
    op = d.one_of(["MaxPool", "AveragePool", "MaxPool", "AveragePool", "LpPool"])
    settings = _window(d, x)
    if op == "AveragePool" and d.chance(0.4):
        settings["count_include_pad"] = 1
    if op != "LpPool" and d.opset >= 10 and d.chance(0.3) and settings.get("auto_pad", "NOTSET") == "NOTSET":
        settings["ceil_mode"] = 1
    return d.add(op, [x], **settings)


def global_pool(d: Drawing) -> Value:
    x = d.pick((3, 4))
    y = d.add(d.one_of(["GlobalAveragePool", "GlobalMaxPool", "GlobalAveragePool", "GlobalLpPool"]), [x])
    if d.chance(0.5):
        return d.add("Flatten", [y])
    return y


def resize(d: Drawing) -> Value:
    x = d.pick((4,))
    scales = np.array([1, 1, d.one_of([1, 2, 0.5]), d.one_of([1, 2, 1.5])], np.float32)
    mode = d.one_of(["nearest", "linear"])
    if d.opset < 9:
        if scales.min() < 1:
            raise RejectedError("Upsample enlarges")
        return d.add("Upsample", [x], scales=scales.tolist(), mode=mode)
    if d.opset == 9:
        return d.add("Upsample", [x, d.constant(np.maximum(scales, 1))], mode=mode)
    if d.opset == 10:
        return d.add("Resize", [x, d.constant(scales)], mode=mode)
    settings: dict[str, Any] = {"mode": d.one_of(["nearest", "linear", "cubic"])}
    settings["coordinate_transformation_mode"] = d.one_of(
        ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"]
    )
    if settings["mode"] == "nearest":
        settings["nearest_mode"] = d.one_of(["floor", "round_prefer_floor", "ceil", "round_prefer_ceil"])
    if d.fixed_batch and d.chance(0.4):
        sizes = [*x.shape[:2], d.integer(1, 8), d.integer(1, 8)]
        return d.add("Resize", [x, None, None, d.ints(*sizes)], **settings)
    roi = None if d.opset >= 13 or d.chance(0.5) else d.constant(np.zeros(0, np.float32))
    return d.add("Resize", [x, roi, d.constant(scales)], **settings)


def pad(d: Drawing) -> Value:
    x = d.pick((2, 3, 4))
    widths = [0] + [d.integer(0, 1) for _ in range(x.rank - 1)]
    mode = d.one_of(["constant", "reflect", "edge"]) if min(x.shape[1:]) > 1 else "constant"
    amount = float(d.one_of([0.0, 0.0, 0.5]))
    if d.opset < 11:
        return d.add("Pad", [x], pads=widths * 2, mode=mode, value=amount)
    value = [d.constant(np.float32(amount))] if mode == "constant" and d.chance(0.5) else []
    return d.add("Pad", [x, d.ints(*widths, *widths), *value], mode=mode)


def slice_(d: Drawing) -> Value:
    x = d.pick((2, 3, 4))
    axis = d.integer(1, x.rank - 1)
    start = d.integer(0, x.shape[axis] - 1)
    end = d.one_of([x.shape[axis], start + 1, 2**31 - 1])
    if d.opset < 10:
        return d.add("Slice", [x], starts=[start], ends=[end], axes=[axis])
    if d.chance(0.2):
        return d.add("Slice", [x, d.ints(-1), d.ints(-(2**31)), d.ints(axis), d.ints(-1)])
    step = [d.ints(d.integer(1, 2))] if d.chance(0.4) else []
    return d.add("Slice", [x, d.ints(start), d.ints(end), d.ints(axis), *step])


def concat(d: Drawing) -> Value:
    x = d.pick((2, 3, 4))
    axis = d.integer(1, x.rank - 1)

    def fits(v: Value) -> bool:
        return v.is_float and v.rank == x.rank and v.shape[:axis] == x.shape[:axis] and v.batched

    parts = [v for v in d.values if fits(v) and v.shape[axis + 1 :] == x.shape[axis + 1 :]]
    count = d.integer(2, 3)
    chosen = [x, *[d.one_of(parts) for _ in range(count - 1)]]
    if d.fixed_batch and d.chance(0.2):
        chosen.append(d.constant(d.rng.standard_normal(x.shape).astype(np.float32)))
    return d.add("Concat", chosen, axis=axis - x.rank if d.opset >= 11 and d.chance(0.3) else axis)


def split(d: Drawing) -> Value:
    x = d.pick((2, 3, 4))
    axis = d.integer(1, x.rank - 1)
    size = x.shape[axis]
    if size < 2:
        raise RejectedError("nothing to split")
    first = d.integer(1, size - 1)
    if size % 2 == 0 and d.chance(0.4):
        settings = {"num_outputs": 2} if d.opset >= 18 else {}
        parts = d.add_several("Split", [x], 2, axis=axis, **settings)
    elif d.opset >= 13:
        parts = d.add_several("Split", [x, d.ints(first, size - first)], 2, axis=axis)
    else:
        parts = d.add_several("Split", [x], 2, axis=axis, split=[first, size - first])
    d.keep(parts[1])
    return parts[0]


def gather(d: Drawing) -> Value:
    x = d.pick((2, 3, 4))
    axis = d.integer(1, x.rank - 1)
    form = d.one_of(["one", "several", "elements"])
    if form == "one":
        index = d.constant(np.int64(d.integer(0, x.shape[axis] - 1)))
        if x.rank == 2:
            raise RejectedError("a vector is left")
        return d.add("Gather", [x, index], axis=axis)
    if form == "several" or d.opset < 11 or not d.fixed_batch:
        return d.add("Gather", [x, d.constant(d.rng.integers(0, x.shape[axis], 3))], axis=axis)
    where = d.rng.integers(0, x.shape[axis], x.shape)
    return d.add("GatherElements", [x, d.constant(where)], axis=axis)


def reshape(d: Drawing) -> Value:
    x = d.pick((2, 3, 4))
    forms: list[list[int]] = [[0, -1], [0, 1, -1]]
    if x.rank >= 3:
        forms += [[0, x.shape[1] * x.shape[2], *x.shape[3:]], [0, *x.shape[:0:-1]]]
    for factor in (2, 3, 4):
        if x.shape[-1] % factor == 0:
            forms.append([0] * (x.rank - 1) + [factor, x.shape[-1] // factor])
    if d.chance(0.2):
        return d.add("Flatten", [x], axis=1)
    form = [form for form in forms if len(form) <= 5]
    return d.add("Reshape", [x, d.ints(*d.one_of(form))])


def computed_reshape(d: Drawing) -> Value:
    """The shape is computed from the shape, as exporters with open sizes write it."""
    x = d.pick((3, 4))
    batch = d.add("Gather", [d.add("Shape", [x], batched=False), d.constant(np.int64(0))], axis=0, batched=False)
    if d.opset >= 13:
        batch = d.add("Unsqueeze", [batch, d.ints(0)], batched=False)
    else:
        batch = d.add("Unsqueeze", [batch], axes=[0], batched=False)
    shape = d.add("Concat", [batch, d.ints(-1)], axis=0, batched=False)
    return d.add("Reshape", [x, shape], batched=True)


def transpose(d: Drawing) -> Value:
    x = d.pick((3, 4))
    rest = d.rng.permutation(np.arange(1, x.rank)).tolist()
    return d.add("Transpose", [x], perm=[0, *rest])


def squeeze(d: Drawing) -> Value:
    x = d.pick((2, 3, 4))
    ones = [axis for axis in range(1, x.rank) if x.shape[axis] == 1]
    if ones and x.rank > 2:
        return d.add("Squeeze", [x, d.ints(ones[0])]) if d.opset >= 13 else d.add("Squeeze", [x], axes=[ones[0]])
    axis = d.integer(1, x.rank)
    return d.add("Unsqueeze", [x, d.ints(axis)]) if d.opset >= 13 else d.add("Unsqueeze", [x], axes=[axis])


def expand(d: Drawing) -> Value:
    x = d.pick((2, 3, 4))
    ones = [axis for axis in range(1, x.rank) if x.shape[axis] == 1]
    if not ones or d.opset < 8:
        raise RejectedError("nothing to expand")
    shape = [1] * x.rank
    shape[ones[0]] = d.integer(2, 3)
    return d.add("Expand", [x, d.ints(*shape)])


def tile(d: Drawing) -> Value:
    x = d.pick((2, 3))
    return d.add("Tile", [x, d.ints(1, *[d.integer(1, 2) for _ in range(x.rank - 1)])])


def depth_space(d: Drawing) -> Value:
    x = d.pick((4,))
    if x.shape[1] % 4 == 0:
        mode = {"mode": d.one_of(["DCR", "CRD"])} if d.opset >= 11 else {}
        return d.add("DepthToSpace", [x], blocksize=2, **mode)
    return d.add("SpaceToDepth", [x], blocksize=2)


def reduction(d: Drawing) -> Value:
    x = d.pick((2, 3, 4))
    kinds = ["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceL1", "ReduceSumSquare"]
    op = d.one_of([*kinds, "ReduceLogSumExp", "ReduceMean"])
    keepdims = d.integer(0, 1) if x.rank > 2 else 1
    axes = [d.integer(1, x.rank - 1)]
    if x.rank == 4 and d.chance(0.4):
        axes = [2, 3]
    return reduce(d, op, x, axes, keepdims)


def top_k(d: Drawing) -> Value:
    x = d.pick((2, 3))
    count = min(2, x.shape[-1])
    if d.opset < 10:
        return d.add_several("TopK", [x], 2, k=count, axis=x.rank - 1)[0]
    return d.add_several("TopK", [x, d.ints(count)], 2, axis=-1)[0]


def cumulative(d: Drawing) -> Value:
    if d.opset < 11:
        raise RejectedError("not in this opset")
    x = d.pick((2, 3))
    return d.add("CumSum", [x, d.constant(np.int64(x.rank - 1))], exclusive=d.integer(0, 1))


def triangle(d: Drawing) -> Value:
    if d.opset < 14:
        raise RejectedError("not in this opset")
    return d.add("Trilu", [d.pick((3, 4))], upper=d.integer(0, 1))


def grid_sample(d: Drawing) -> Value:
    if d.opset < 16 or not d.fixed_batch:
        raise RejectedError("not in this opset")
    x = d.pick((4,))
    grid = d.rng.uniform(-1, 1, (x.shape[0], 3, 3, 2)).astype(np.float32)
    return d.add("GridSample", [x, d.constant(grid)])


MOVES = (
    pool,
    pool,
    global_pool,
    resize,
    pad,
    slice_,
    slice_,
    concat,
    concat,
    split,
    gather,
    reshape,
    reshape,
    computed_reshape,
    transpose,
    transpose,
    squeeze,
    expand,
    tile,
    depth_space,
    reduction,
    reduction,
    top_k,
    cumulative,
    triangle,
    grid_sample,
)
