"""Rules of the vocabulary for convolutions, pooling and resizing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx

from isobit_torch.program.fx_nodes import SHAPE, op_name
from isobit_torch.translate.rule import Arguments, Rule


def _each(value: Any, count: int) -> tuple[int, ...]:
    """One number for each spatial axis."""
    numbers = list(value) if isinstance(value, list | tuple) else [value]
    return tuple(int(n) for n in (numbers * count if len(numbers) == 1 else numbers))


def _spatial(shape: Sequence[Any]) -> int:
    return len(shape) - 2


def _conv(node: fx.Node, a: Arguments) -> Any:
    if a.get("transposed"):
        return _conv_transpose(node, a)
    weight = a["weight"]
    kernel = tuple(weight.meta[SHAPE][2:])
    if len(a["input"].meta[SHAPE]) != len(kernel) + 2:
        return None  # without a batch axis
    count = len(kernel)
    strides, dilations = _each(a["stride"], count), _each(a["dilation"], count)
    padding = a["padding"]
    if isinstance(padding, str):
        totals = [d * (k - 1) if padding == "same" else 0 for k, d in zip(kernel, dilations, strict=True)]
        pads = (*(t // 2 for t in totals), *(t - t // 2 for t in totals))
    else:
        pads = _each(padding, count) * 2
    attributes = {
        "group": a["groups"],
        "kernel_shape": kernel,
        "strides": strides,
        "dilations": dilations,
        "pads": pads,
    }
    return "Conv", _operands(a), attributes


def _conv_transpose(node: fx.Node, a: Arguments) -> Any:
    kernel = tuple(a["weight"].meta[SHAPE][2:])
    count = len(kernel)
    if len(a["input"].meta[SHAPE]) != count + 2:
        return None
    attributes = {
        "group": a["groups"],
        "kernel_shape": kernel,
        "strides": _each(a["stride"], count),
        "dilations": _each(a["dilation"], count),
        "pads": _each(a["padding"], count) * 2,
    }
    extra = _each(a["output_padding"], count)
    if any(extra):
        attributes["output_padding"] = extra
    return "ConvTranspose", _operands(a), attributes


def _operands(a: Arguments) -> tuple[Any, ...]:
    return (a["input"], a["weight"], *(() if a["bias"] is None else (a["bias"],)))


def _window(a: Arguments, count: int) -> dict[str, Any]:
    kernel = _each(a["kernel_size"], count)
    return {
        "kernel_shape": kernel,
        "strides": _each(a["stride"], count) if a["stride"] else kernel,
        "pads": _each(a["padding"], count) * 2,
        "ceil_mode": int(a["ceil_mode"]),
    }


def _max_pool(node: fx.Node, a: Arguments) -> Any:
    count = _count(node, a)
    if count is None:
        return None
    return "MaxPool", (a["self"],), {**_window(a, count), "dilations": _each(a["dilation"], count)}


def _max_pool_values(node: fx.Node, a: Arguments) -> Any:
    """A max pool whose places (numbered in another way in ONNX) nobody reads."""
    return None if any(user.args[1] != 0 for user in node.users) else _max_pool(node, a)


def _adaptive_max(node: fx.Node, a: Arguments) -> Any:
    average = _adaptive_average(node, a)
    if average is None or any(op_name(user) == "getitem" and user.args[1] != 0 for user in node.users):
        return None
    return {"GlobalAveragePool": "GlobalMaxPool", "AveragePool": "MaxPool"}.get(average[0], average[0]), *average[1:]


def _average_pool(node: fx.Node, a: Arguments) -> Any:
    count = _count(node, a)
    if count is None or a.get("divisor_override") is not None:
        return None
    attributes = _window(a, count)
    attributes["count_include_pad"] = int(a["count_include_pad"] and any(attributes["pads"]))
    return "AveragePool", (a["self"],), attributes


def _count(node: fx.Node, a: Arguments) -> int | None:
    """Spatial axes of a pooling call ``...pool2d``; None where the input has no batch axis."""
    count = int(next(c for c in op_name(node) if c in "123"))
    return count if _spatial(a["self"].meta[SHAPE]) == count else None


def _adaptive_average(node: fx.Node, a: Arguments) -> Any:
    shape = a["self"].meta[SHAPE]
    count = _count(node, a)
    if count is None:
        return None
    sizes = _each(a["output_size"], count) if None not in _listed(a["output_size"]) else None
    if sizes is None:
        return None
    if all(n == 1 for n in sizes):
        return "GlobalAveragePool", (a["self"],), {"keepdims": 1}
    if not all(isinstance(n, int) and n % w == 0 for n, w in zip(shape[2:], sizes, strict=True)):
        return None
    if sizes == tuple(shape[2:]):
        return "Identity", (a["self"],)
    kernel = tuple(n // w for n, w in zip(shape[2:], sizes, strict=True))
    return "AveragePool", (a["self"],), {"kernel_shape": kernel, "strides": kernel, "pads": (0,) * 2 * count}


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _resize(mode: str) -> Rule:
    def rule(node: fx.Node, a: Arguments) -> Any:
        source, target = (n.meta[SHAPE] for n in (_source(a), node))
        factors = a.get("scale_factors")
        if factors is None:
            pairs = list(zip(source[2:], target[2:], strict=True))
            if not all(isinstance(x, int) and isinstance(y, int) for x, y in pairs):
                return None
            factors = [y / x for x, y in pairs]
        aligned = bool(a.get("align_corners"))
        exact = "exact" in op_name(node)
        coordinates = "half_pixel" if exact else "asymmetric"
        if mode != "nearest":
            coordinates = "align_corners" if aligned else "pytorch_half_pixel"
        attributes: dict[str, Any] = {
            "mode": mode,
            "coordinate_transformation_mode": coordinates,
            "scales": (1.0, 1.0, *factors),
        }
        if mode == "nearest":
            attributes["nearest_mode"] = "round_prefer_ceil" if exact else "floor"
        if mode == "cubic":
            attributes["cubic_coeff_a"] = -0.75
        if op_name(node).endswith("_aa"):
            attributes["antialias"] = 1
        return "Resize", (_source(a),), attributes

    return rule


def _source(a: Arguments) -> fx.Node:
    source: fx.Node = a["input"] if "input" in a else a["self"]
    return source


_CONVS = ("conv1d", "conv2d", "conv3d", "convolution")
_TRANSPOSED = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
_UPSAMPLES: dict[str, str] = {
    **{f"upsample_nearest{n}d": "nearest" for n in (1, 2, 3)},
    **{f"_upsample_nearest_exact{n}d": "nearest" for n in (1, 2, 3)},
    **dict.fromkeys(("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d"), "linear"),
    "_upsample_bilinear2d_aa": "linear",
    **dict.fromkeys(("upsample_bicubic2d", "_upsample_bicubic2d_aa"), "cubic"),
}

WINDOW_RULES: dict[str, Rule] = {
    **dict.fromkeys(_CONVS, _conv),
    **dict.fromkeys(_TRANSPOSED, _conv_transpose),
    **{f"max_pool{n}d": _max_pool for n in (1, 2, 3)},
    **{f"max_pool{n}d_with_indices": _max_pool_values for n in (1, 2, 3)},
    **{f"adaptive_max_pool{n}d": _adaptive_max for n in (1, 2, 3)},
    **{f"avg_pool{n}d": _average_pool for n in (1, 2, 3)},
    **{f"adaptive_avg_pool{n}d": _adaptive_average for n in (1, 2, 3)},
    **{name: _resize(mode) for name, mode in _UPSAMPLES.items()},
    "pixel_shuffle": lambda node, a: ("DepthToSpace", (a["self"],), {"blocksize": a["upscale_factor"], "mode": "CRD"}),
}
