"""Composite arithmetic: statistics, norms, interpolations and activations out of elementary operations."""

from __future__ import annotations

import math
from typing import Any

from torch import fx

from isobit_torch.decompose.expander import Expander, Rule
from isobit_torch.program.fx_nodes import DTYPE, aten, is_tensor, op_name


def _is_float(node: fx.Node) -> bool:
    return str(node.meta.get(DTYPE)).startswith(("float", "bfloat"))


def _rank(node: fx.Node) -> int:
    return len(node.meta["val"].shape)


def _take(e: Expander, node: fx.Node, index: int, result: fx.Node) -> None:
    """`result` stands in for number `index` of the results of a call."""
    for user in list(node.users):
        if op_name(user) == "getitem" and user.args[1] == index:
            result.meta["val"], result.meta[DTYPE] = user.meta.get("val"), user.meta.get(DTYPE)
            user.replace_all_uses_with(result)
            e.graph.erase_node(user)


def _axes(node: fx.Node, axes: Any) -> list[int]:
    if axes is None or axes == []:
        return list(range(_rank(node)))
    return [axes] if isinstance(axes, int) else list(axes)


def _variance(e: Expander, node: fx.Node, a: dict[str, Any], part: str = "") -> fx.Node | None:
    """The mean of the squared difference from the mean, times n / (n - correction)."""
    x, axes, keep = a["self"], _axes(a["self"], a.get("dim")), bool(a.get("keepdim", False))
    correction = a.get("correction", 1 if a.get("unbiased", True) else 0)
    correction = 1 if correction is None else correction
    sizes = [x.meta["val"].shape[axis] for axis in axes]
    if not all(isinstance(n, int) for n in sizes) or not _is_float(x):
        return None
    count = math.prod(int(n) for n in sizes)
    if count <= correction:
        return None
    mean = e.call(aten.mean.dim, x, axes, True, part="mean", like=x)
    centered = e.call(aten.sub.Tensor, x, mean, part="centered", like=x)
    square = e.call(aten.mul.Tensor, centered, centered, part="square", like=x)
    name = part if not correction else "biased"
    variance = e.call(aten.mean.dim, square, axes, keep, part=name, like=x)
    if correction:
        factor = e.constant(count / (count - correction), "factor")
        variance = e.call(aten.mul.Tensor, variance, factor, part=part, like=x)
    return variance


def _deviation(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node | None:
    variance = _variance(e, node, a, "variance")
    return None if variance is None else e.call(aten.sqrt.default, variance, like=a["self"])


def _with_mean(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node | None:
    """std_mean and var_mean: two results."""
    statistic = (_deviation if op_name(node) == "std_mean" else _variance)(e, node, a)
    if statistic is None:
        return None
    axes = _axes(a["self"], a.get("dim"))
    mean = e.call(aten.mean.dim, a["self"], axes, bool(a.get("keepdim", False)), part="average", like=a["self"])
    _take(e, node, 0, statistic)
    _take(e, node, 1, mean)
    return statistic


def _extreme(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node | None:
    """max and min: of two tensors, of all values, or along an axis with the place as second result."""
    x, largest = a["self"], op_name(node) == "max"
    if "other" in a:
        return e.call((aten.maximum if largest else aten.minimum).default, x, a["other"])
    reduce, place = (aten.amax, aten.argmax) if largest else (aten.amin, aten.argmin)
    if not _is_float(x):
        return None
    if "dim" not in a:
        return e.call(reduce.default, x, list(range(_rank(x))))
    extremes = e.call(reduce.default, x, [a["dim"]], a["keepdim"], like=x)
    if any(user.args[1] == 1 for user in node.users if op_name(user) == "getitem"):
        _take(e, node, 1, e.call(place.default, x, a["dim"], a["keepdim"], part="place"))
    _take(e, node, 0, extremes)
    return extremes


def _place(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node | None:
    if a["dim"] is not None or a["keepdim"]:
        return None
    flat = e.call(aten.reshape.default, a["self"], [-1], part="flat", like=a["self"])
    return e.call(node.target, flat, 0)


def _not_equal(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node:
    same = aten.eq.Tensor if is_tensor(a["other"]) else aten.eq.Scalar
    return e.call(aten.logical_not.default, e.call(same, a["self"], a["other"], part="equal"))


def _clamp(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node | None:
    """Bounds that are tensors, and an integer beside a float, which torch.onnx.export promotes to a tensor."""
    low, high = a.get("min"), a.get("max")
    x = a["self"]
    if not is_tensor(low) and not is_tensor(high):
        bounds = [bound for bound in (low, high) if isinstance(bound, int | float)]
        if len({type(bound) for bound in bounds}) < 2:
            return None
        return e.call(aten.clamp.default, x, *map(float, bounds))
    if low is not None:
        x = e.call(aten.maximum.default, x, low, part="" if high is None else "low")
    return x if high is None else e.call(aten.minimum.default, x, high)


def _scaled(e: Expander, x: fx.Node, factor: float, part: str) -> fx.Node:
    return x if factor == 1 else e.call(aten.mul.Tensor, x, e.constant(float(factor), f"{part}_factor"), part=part)


def _add_fraction(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node:
    quotient = e.call(aten.div.Tensor, a["tensor1"], a["tensor2"], part="quotient")
    return e.call(aten.add.Tensor, a["self"], _scaled(e, quotient, a["value"], "scaled"))


def _add_product(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node:
    product = e.call(aten.mul.Tensor, a["tensor1"], a["tensor2"], part="product")
    return e.call(aten.add.Tensor, a["self"], _scaled(e, product, a["value"], "scaled"))


def _add_matmul(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node:
    left, right = (a["batch1"], a["batch2"]) if "batch1" in a else (a["mat1"], a["mat2"])
    product = _scaled(e, e.call(aten.matmul.default, left, right, part="product"), a["alpha"], "scaled")
    return e.call(aten.add.Tensor, product, _scaled(e, a["self"], a["beta"], "bias"))


def _lerp(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node:
    weight = a["weight"] if is_tensor(a["weight"]) else e.constant(float(a["weight"]), "weight")
    difference = e.call(aten.sub.Tensor, a["end"], a["self"], part="difference")
    return e.call(aten.add.Tensor, a["self"], e.call(aten.mul.Tensor, difference, weight, part="step"))


def _outer(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node:
    column = e.call(aten.unsqueeze.default, a["self"], 1, part="column")
    return e.call(aten.mul.Tensor, column, a["vec2"])


def _rounded_division(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node | None:
    """``x // y`` of floats."""
    if a.get("rounding_mode", "floor") != "floor" or not _is_float(node):
        return None
    other = a["other"] if is_tensor(a["other"]) else e.constant(float(a["other"]), "divisor")
    return e.call(aten.floor.default, e.call(aten.div.Tensor, a["self"], other, part="quotient"))


def _running_product(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node | None:
    """Each step multiplies with what lies 1, 2, 4 ... places before: ONNX has no running product."""
    x, axis = a["self"], a["dim"]
    shape = x.meta["val"].shape
    count = shape[axis]
    if not isinstance(count, int) or not _is_float(x) or a.get("dtype") is not None:
        return None
    if count == 1:
        return e.call(aten.alias.default, x)
    behind = len(shape) - 1 - axis % len(shape)
    places = 1
    product: fx.Node = x
    while places < count:
        ones = [0] * (2 * behind) + [places, 0]
        kept = e.call(aten.slice.Tensor, product, axis, 0, count - places, part=f"kept_{places}", like=x)
        earlier = e.call(aten.constant_pad_nd.default, kept, ones, 1.0, part=f"earlier_{places}", like=x)
        is_last = 2 * places >= count
        product = e.call(aten.mul.Tensor, product, earlier, part="" if is_last else f"of_{2 * places}", like=x)
        places *= 2
    return product


def _bilinear(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node | None:
    """A linear layer of the first input, whose results meet the second: the weight is one of a layer then."""
    outputs, inputs, others = (int(n) for n in a["weight"].meta["val"].shape)
    turned = e.call(aten.permute.default, a["weight"], [0, 2, 1], part="turned", like=a["weight"])
    matrix = e.call(aten.reshape.default, turned, [outputs * others, inputs], part="matrix", like=a["weight"])
    first = e.call(aten.linear.default, a["input1"], matrix, part="first")
    rows = e.call(aten.unflatten.int, first, -1, [outputs, others], part="rows")
    second = e.call(aten.unsqueeze.default, a["input2"], -2, part="second")
    product = e.call(aten.mul.Tensor, rows, second, part="product")
    if a["bias"] is None:
        return e.call(aten.sum.dim_IntList, product, [-1])
    return e.call(aten.add.Tensor, e.call(aten.sum.dim_IntList, product, [-1], part="sum"), a["bias"])


def _glu(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node | None:
    x, axis = a["self"], a["dim"]
    size = x.meta["val"].shape[axis]
    if not isinstance(size, int):
        return None
    value = e.call(aten.slice.Tensor, x, axis, 0, size // 2, part="value")
    gate = e.call(aten.slice.Tensor, x, axis, size // 2, size, part="gate")
    return e.call(aten.mul.Tensor, value, e.call(aten.sigmoid.default, gate, part="sigmoid"))


def _log_sigmoid(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node:
    """Minus the softplus of minus x."""
    negative = e.call(aten.neg.default, a["self"], part="negative")
    return e.call(aten.neg.default, e.call(aten.softplus.default, negative, part="softplus"))


def _softplus(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node | None:
    if a["beta"] == 1:
        return None
    inner = e.call(aten.softplus.default, _scaled(e, a["self"], a["beta"], "scaled"), part="softplus")
    return e.call(aten.div.Tensor, inner, e.constant(float(a["beta"]), "beta"))


def _threshold(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node:
    above = e.call(aten.gt.Scalar, a["self"], a["threshold"], part="above")
    above.meta[DTYPE] = "bool"
    return e.call(aten.where.self, above, a["self"], e.constant(float(a["value"]), "value"))


def _random_relu(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node | None:
    """In evaluation, a LeakyRelu with the middle slope."""
    return None if a["training"] else e.call(aten.leaky_relu.default, a["self"], (a["lower"] + a["upper"]) / 2)


def _cosine(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node:
    """The dot product of both tensors over their lengths."""
    lengths = []
    for key in ("x1", "x2"):
        norm = e.call(aten.linalg_vector_norm.default, a[key], 2, [a["dim"]], True, part=f"{key}_length")
        lengths.append(e.call(aten.clamp_min.default, norm, a["eps"], part=f"{key}_clipped"))
    left, right = (e.call(aten.div.Tensor, a[k], n, part=k) for k, n in zip(("x1", "x2"), lengths, strict=True))
    return e.call(aten.sum.dim_IntList, e.call(aten.mul.Tensor, left, right, part="product"), [a["dim"]])


def _instance_norm(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node | None:
    """With running statistics it is a batch norm; without scale and shift it gets ones and zeros."""
    x = a["input"]
    if not a["use_input_stats"]:
        statistics = (a["running_mean"], a["running_var"])
        return e.call(
            aten.batch_norm.default, x, a["weight"], a["bias"], *statistics, False, a["momentum"], a["eps"], False
        )
    if a["weight"] is not None:
        return None
    channels = int(x.meta["val"].shape[1])
    weight, bias = e.constant([1.0] * channels, "weight"), e.constant([0.0] * channels, "bias")
    rest = (None, None, True, a["momentum"], a["eps"], a["cudnn_enabled"])
    return e.call(aten.instance_norm.default, x, weight, bias, *rest)


def _adaptive_average(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node | None:
    """Where the window is the same everywhere it is an average pool (torch.onnx has no three-dimensional one)."""
    name = op_name(node)
    count = int(name[-2])
    spatial = a["self"].meta["val"].shape[-count:]
    sizes = a["output_size"] if isinstance(a["output_size"], list | tuple) else [a["output_size"]] * count
    if all(n == 1 for n in sizes) or any(not isinstance(n, int) for n in (*sizes, *spatial)):
        return None
    if any(n % w for n, w in zip(spatial, sizes, strict=True)) or list(spatial) == list(sizes):
        return None
    kernel = [int(n) // w for n, w in zip(spatial, sizes, strict=True)]
    return e.call(getattr(aten, f"avg_pool{count}d").default, a["self"], kernel, kernel)


def _embedding_bag(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node | None:
    """Bags of one size: the rows, then their sum, mean or maximum."""
    indices, offsets = a["indices"], a["offsets"]
    rows = indices.args[0] if op_name(indices) in ("reshape", "view") else None
    if a["per_sample_weights"] is not None or a["include_last_offset"] or op_name(offsets) != "arange":
        return None
    if not isinstance(rows, fx.Node) or _rank(rows) != 2 or any(user.args[1] != 0 for user in node.users):
        return None
    embedded = e.call(aten.embedding.default, a["weight"], rows, part="rows", like=a["weight"])
    reduce, kind = (aten.sum.dim_IntList, aten.mean.dim, aten.amax.default), a["mode"]
    bags = e.call(reduce[kind], embedded, [1], like=a["weight"])
    _take(e, node, 0, bags)
    return bags


def _nan_free(target: Any) -> Rule:
    """fmax and fmin differ from max and min on NaN alone, which is no data."""
    return lambda e, node, a: e.call(target, a["self"], a["other"])


MATH: dict[str, Rule] = {
    "std": _deviation,
    "var": _variance,
    "std_mean": _with_mean,
    "var_mean": _with_mean,
    "max": _extreme,
    "min": _extreme,
    "argmax": _place,
    "argmin": _place,
    "ne": _not_equal,
    "clamp": _clamp,
    "clip": _clamp,
    "addcdiv": _add_fraction,
    "addcmul": _add_product,
    "addmm": _add_matmul,
    "baddbmm": _add_matmul,
    "lerp": _lerp,
    "outer": _outer,
    "floor_divide": _rounded_division,
    "bilinear": _bilinear,
    "cumprod": _running_product,
    "glu": _glu,
    "log_sigmoid": _log_sigmoid,
    "softplus": _softplus,
    "threshold": _threshold,
    "rrelu": _random_relu,
    "cosine_similarity": _cosine,
    "instance_norm": _instance_norm,
    **{f"adaptive_avg_pool{n}d": _adaptive_average for n in (1, 2, 3)},
    "embedding_bag": _embedding_bag,
    "fmax": _nan_free(aten.maximum.default),
    "fmin": _nan_free(aten.minimum.default),
}
