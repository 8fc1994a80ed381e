"""ATen calls in the neutral vocabulary: one rule for each, from a call's arguments to (op, inputs, attributes).

An input is an fx node, None, or a NumPy array for a setting that ONNX gives as a constant input. A rule that returns
None leaves the call without a mapping: it stays in float under its ATen name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import fx

from isobit.graph import Layout
from isobit_torch.program.fx_nodes import SHAPE, arguments, is_tensor, op_name
from isobit_torch.program.modules import Recurrent
from isobit_torch.program.recurrent_calls import GATES
from isobit_torch.translate.ops_shapes import SHAPE_RULES
from isobit_torch.translate.ops_windows import WINDOW_RULES
from isobit_torch.translate.rule import Arguments, Rule, rank


@dataclass(frozen=True)
class NeutralCall:
    """A call as an op of the neutral graph: inputs are fx nodes, None or arrays."""

    op: str
    inputs: tuple[Any, ...]
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Viewed:
    """A parameter that the neutral graph has in another layout."""

    node: fx.Node
    layout: Layout


_IDENTITIES = (
    "contiguous clone detach detach_ alias lift_fresh_copy lift_fresh positive expand_as_self conj resolve_conj".split()
)

_UNARY = {
    "relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "neg": "Neg",
    "reciprocal": "Reciprocal", "abs": "Abs", "erf": "Erf", "sin": "Sin", "cos": "Cos", "floor": "Floor",
    "ceil": "Ceil", "round": "Round", "sign": "Sign",
    "silu": "Swish", "mish": "Mish", "hardswish": "HardSwish", "softsign": "Softsign",
    "logical_not": "Not", "bitwise_not": "Not", "isnan": "IsNaN", "isinf": "IsInf", "selu": "Selu", "sgn": "Sign",
    "tan": "Tan", "asin": "Asin", "acos": "Acos", "atan": "Atan", "sinh": "Sinh", "cosh": "Cosh", "asinh": "Asinh",
    "acosh": "Acosh", "atanh": "Atanh",
}  # fmt: skip

_BINARY = {
    "add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "true_divide": "Div", "maximum": "Max", "minimum": "Min",
    "eq": "Equal", "gt": "Greater", "lt": "Less", "ge": "GreaterOrEqual", "le": "LessOrEqual", "logical_and": "And",
    "logical_or": "Or", "logical_xor": "Xor", "__and__": "And", "__or__": "Or",
    "bitwise_and": "And",
    "bitwise_or": "Or", "pow": "Pow", "fmod": "Mod", "remainder": "Mod",
}  # fmt: skip

_PRODUCTS = ("matmul", "bmm", "mm", "mv", "dot")


def convert(node: fx.Node) -> NeutralCall | None:
    """The neutral form of a call, or None where there is none."""
    name = op_name(node)
    a = arguments(node)
    for rules in (RULES, WINDOW_RULES, SHAPE_RULES):
        if name in rules:
            result = rules[name](node, a)
            return result if result is None or isinstance(result, NeutralCall) else NeutralCall(*result)
    source = next(iter(a.values()), None)
    if name in _IDENTITIES:
        return NeutralCall("Identity", (source,))
    if name in _UNARY:
        return NeutralCall(_UNARY[name], (source,))
    if name in _PRODUCTS:
        return NeutralCall("MatMul", tuple(a.values())[:2])
    if name in _BINARY and a.get("rounding_mode") is None:
        operands = tuple(constant(value) for value in list(a.values())[:2])
        return NeutralCall(_BINARY[name], operands) if all(value is not None for value in operands) else None
    return None


def convert_recurrent(module: Recurrent, node: fx.Node) -> NeutralCall:
    """One layer and direction: ONNX's gates and ONNX's inputs, the bias in its two halves."""
    x, *parameters, hidden, cell = node.args
    layout = GATES[module.kind]
    viewed = [Viewed(p, layout) if isinstance(p, fx.Node) and layout else p for p in parameters]
    weight, recurrent, bias, recurrent_bias = viewed
    attributes: dict[str, Any] = {"direction": "reverse" if module.reverse else "forward"}
    if module.kind == "GRU":
        attributes["linear_before_reset"] = 1
    if module.activation:
        attributes["activations"] = (module.activation,)
    return NeutralCall(module.kind, (x, weight, recurrent, bias, None, hidden, cell, None, recurrent_bias), attributes)


def constant(value: Any) -> Any:
    """A tensor node as it is, a number as an array, None for a size."""
    if isinstance(value, fx.Node):
        return value if is_tensor(value) else None
    if isinstance(value, bool):
        return np.asarray(value)
    return np.asarray(value, np.int64 if isinstance(value, int) else np.float32)


def _clip(low: str, high: str) -> Rule:
    def rule(node: fx.Node, a: Arguments) -> Any:
        bounds = {"min": a.get(low), "max": a.get(high)}
        if any(isinstance(bound, fx.Node) for bound in bounds.values()):
            return None
        return "Clip", (a["self"],), {name: float(value) for name, value in bounds.items() if value is not None}

    return rule


def _relu6(node: fx.Node, a: Arguments) -> Any:
    return "Clip", (a["self"],), {"min": 0.0, "max": 6.0}


def _with(op: str, **settings: str) -> Rule:
    """An op of one tensor whose attributes are the arguments of the names given."""

    def rule(node: fx.Node, a: Arguments) -> Any:
        return op, (a["self"],), {name: a[argument] for name, argument in settings.items()}

    return rule


def _elu(node: fx.Node, a: Arguments) -> Any:
    return ("Elu", (a["self"],), {"alpha": float(a["alpha"])}) if a["scale"] == 1 and a["input_scale"] == 1 else None


def _softplus(node: fx.Node, a: Arguments) -> Any:
    return ("Softplus", (a["self"],)) if a["beta"] == 1 else None


def _hardsigmoid(node: fx.Node, a: Arguments) -> Any:
    return "HardSigmoid", (a["self"],), {"alpha": 1 / 6, "beta": 0.5}


def _linear(node: fx.Node, a: Arguments) -> Any:
    bias = a["bias"]
    return "Linear", (a["input"], a["weight"], *(() if bias is None else (bias,)))


def _batch_norm(node: fx.Node, a: Arguments) -> Any:
    inputs = (a["input"], a["weight"], a["bias"], a["running_mean"], a["running_var"])
    return "BatchNormalization", inputs, {"epsilon": a["eps"]}


def _layer_norm(node: fx.Node, a: Arguments) -> Any:
    attributes = {"axis": -len(a["normalized_shape"]), "epsilon": a["eps"]}
    return "LayerNormalization", (a["input"], a["weight"], a["bias"]), attributes


def _rms_norm(node: fx.Node, a: Arguments) -> Any:
    if a["weight"] is None:
        return None
    epsilon = 1.1920929e-07 if a["eps"] is None else a["eps"]
    return "RMSNormalization", (a["input"], a["weight"]), {"axis": -len(a["normalized_shape"]), "epsilon": epsilon}


def _group_norm(node: fx.Node, a: Arguments) -> Any:
    return (
        "GroupNormalization",
        (a["input"], a["weight"], a["bias"]),
        {"epsilon": a["eps"], "num_groups": a["num_groups"]},
    )


def _instance_norm(node: fx.Node, a: Arguments) -> Any:
    if not a["use_input_stats"] or a["weight"] is None:
        return None
    return "InstanceNormalization", (a["input"], a["weight"], a["bias"]), {"epsilon": a["eps"]}


def _embedding(node: fx.Node, a: Arguments) -> Any:
    return "Gather", (a["weight"], a["indices"]), {"axis": 0}


def _index_select(node: fx.Node, a: Arguments) -> Any:
    return "Gather", (a["self"], a["index"]), {"axis": a["dim"] % rank(a["self"])}


def _index(node: fx.Node, a: Arguments) -> Any:
    """``table[indices]`` along one axis only."""
    used = [axis for axis, index in enumerate(a["indices"]) if index is not None]
    if len(used) != 1 or a["indices"][used[0]].meta.get("dtype") == "bool":
        return None
    return "Gather", (a["self"], a["indices"][used[0]]), {"axis": used[0]}


def _gather(node: fx.Node, a: Arguments) -> Any:
    return "GatherElements", (a["self"], a["index"]), {"axis": a["dim"]}


def _softmax(op: str) -> Rule:
    return lambda node, a: (op, (a["self"],), {"axis": a["dim"]})


def _cast(node: fx.Node, a: Arguments) -> Any:
    return "Cast", (a["self"],), {"to": node.meta["dtype"]}


def _where(node: fx.Node, a: Arguments) -> Any:
    values = [constant(a.get(name)) for name in ("self", "other")]
    return ("Where", (a["condition"], *values)) if all(v is not None for v in values) else None


def _masked_fill(node: fx.Node, a: Arguments) -> Any:
    return "Where", (a["mask"], constant(a["value"]), a["self"])


def _reduce(op: str) -> Rule:
    def rule(node: fx.Node, a: Arguments) -> Any:
        source = a["self"]
        axes = a.get("dim")
        count = rank(source)
        axes = range(count) if axes is None or axes == [] else ([axes] if isinstance(axes, int) else axes)
        keep = int(bool(a.get("keepdim", False)))
        return op, (source,), {"axes": tuple(sorted(axis % count for axis in axes)), "keepdims": keep}

    return rule


def _arg(op: str) -> Rule:
    def rule(node: fx.Node, a: Arguments) -> Any:
        return None if a["dim"] is None else (op, (a["self"],), {"axis": a["dim"], "keepdims": int(a["keepdim"])})

    return rule


def _vector_norm(node: fx.Node, a: Arguments) -> Any:
    op = {1: "ReduceL1", 2: "ReduceL2"}.get(a["ord"])
    return None if op is None else _reduce(op)(node, a)


def _sorted(node: fx.Node, a: Arguments) -> Any:
    """sort and topk; a sort is a TopK of all."""
    size = a["self"].meta[SHAPE][a["dim"]]
    count = a.get("k", size)
    if not isinstance(count, int):
        return None
    attributes = {
        "axis": a["dim"],
        "k": count,
        "largest": int(bool(a.get("largest", a.get("descending")))),
        "sorted": 1,
    }
    return "TopK", (a["self"],), attributes


def _shrink(bias: bool) -> Rule:
    """ONNX's Shrink is both: softshrink moves what it keeps towards zero."""
    return lambda node, a: (
        "Shrink",
        (a["self"],),
        {"lambd": float(a["lambd"]), "bias": float(a["lambd"]) if bias else 0.0},
    )


def _triangle(node: fx.Node, a: Arguments) -> Any:
    if isinstance(a["diagonal"], fx.Node):
        return None
    return "Trilu", (a["self"],), {"upper": int(op_name(node) == "triu"), "k": a["diagonal"]}


def _scatter(node: fx.Node, a: Arguments) -> Any:
    if not is_tensor(a.get("src")):
        return None
    attributes: dict[str, Any] = {"axis": a["dim"] % rank(a["self"])}
    if op_name(node) == "scatter_add":
        attributes["reduction"] = "add"
    return "ScatterElements", (a["self"], a["index"], a["src"]), attributes


def _grid_sample(node: fx.Node, a: Arguments) -> Any:
    attributes = {
        "mode": ("linear", "nearest", "cubic")[a["interpolation_mode"]],
        "padding_mode": ("zeros", "border", "reflection")[a["padding_mode"]],
        "align_corners": int(a["align_corners"]),
    }
    return "GridSample", (a["input"], a["grid"]), attributes


def _dropout(node: fx.Node, a: Arguments) -> Any:
    return "Dropout", (a["input"],)


RULES: dict[str, Rule] = {
    "linear": _linear,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "group_norm": _group_norm,
    "instance_norm": _instance_norm,
    "relu6": _relu6,
    "hardtanh": _clip("min_val", "max_val"),
    "clamp": _clip("min", "max"),
    "clip": _clip("min", "max"),
    "clamp_min": _clip("min", ""),
    "clamp_max": _clip("", "max"),
    "gelu": _with("Gelu", approximate="approximate"),
    "leaky_relu": _with("LeakyRelu", alpha="negative_slope"),
    "celu": _with("Celu", alpha="alpha"),
    "elu": _elu,
    "softplus": _softplus,
    "hardsigmoid": _hardsigmoid,
    "prelu": lambda node, a: ("PRelu", (a["self"], a["weight"])),
    "softmax": _softmax("Softmax"),
    "_softmax": _softmax("Softmax"),
    "log_softmax": _softmax("LogSoftmax"),
    "embedding": _embedding,
    "index_select": _index_select,
    "index": _index,
    "gather": _gather,
    "to": _cast,
    "_to_copy": _cast,
    "type_as": _cast,
    "float": _cast,
    "where": _where,
    "masked_fill": _masked_fill,
    "mean": _reduce("ReduceMean"),
    "sum": _reduce("ReduceSum"),
    "amax": _reduce("ReduceMax"),
    "amin": _reduce("ReduceMin"),
    "prod": _reduce("ReduceProd"),
    "logsumexp": _reduce("ReduceLogSumExp"),
    "linalg_vector_norm": _vector_norm,
    "topk": _sorted,
    "sort": _sorted,
    "hardshrink": _shrink(bias=False),
    "softshrink": _shrink(bias=True),
    "triu": _triangle,
    "tril": _triangle,
    "scatter": _scatter,
    "scatter_add": _scatter,
    "grid_sampler": _grid_sample,
    "argmax": _arg("ArgMax"),
    "argmin": _arg("ArgMin"),
    "cumsum": lambda node, a: ("CumSum", (a["self"],), {"axis": a["dim"]}),
    "dropout": _dropout,
    "alpha_dropout": _dropout,
    "feature_dropout": _dropout,
    "feature_alpha_dropout": _dropout,
}
