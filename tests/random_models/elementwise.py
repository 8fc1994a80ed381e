"""Operations on every element: arithmetic, activations, comparisons, and what decides by them."""

from __future__ import annotations

from typing import Any

import numpy as np
from drawing import Drawing, RejectedError, Value
from onnx import TensorProto, helper

_UNARY: dict[str, int] = {
    "Relu": 7,
    "Sigmoid": 7,
    "Tanh": 7,
    "LeakyRelu": 7,
    "Elu": 7,
    "Selu": 7,
    "Celu": 12,
    "ThresholdedRelu": 10,
    "HardSigmoid": 7,
    "HardSwish": 14,
    "Softplus": 7,
    "Softsign": 7,
    "Abs": 7,
    "Neg": 7,
    "Floor": 7,
    "Ceil": 7,
    "Round": 11,
    "Sign": 9,
    "Exp": 7,
    "Erf": 9,
    "Sin": 7,
    "Cos": 7,
    "Atan": 7,
    "Sinh": 9,
    "Asinh": 9,
    "Gelu": 20,
    "Mish": 18,
    "Swish": 24,
    "Shrink": 9,
    "Identity": 7,
}


def unary(d: Drawing) -> Value:
    op = d.one_of([*[name for name, since in _UNARY.items() if since <= d.opset], "Relu", "Relu", "Relu"])
    settings: dict[str, Any] = {}
    if op in ("LeakyRelu", "Elu", "ThresholdedRelu", "HardSigmoid") and d.chance(0.5):
        settings["alpha"] = 0.3
    if op == "Gelu":
        settings["approximate"] = d.one_of(["none", "tanh"])
    return d.add(op, [d.pick()], **settings)


def positive(d: Drawing) -> Value:
    """A root or a logarithm of what cannot be negative."""
    square = d.add("Abs", [d.pick()])
    shifted = d.add("Add", [square, d.constant(np.float32(0.1))])
    return d.add(d.one_of(["Sqrt", "Log", "Reciprocal"]), [shifted])


def clip(d: Drawing) -> Value:
    x = d.pick()
    low, high = d.one_of([(0.0, 6.0), (-1.0, 1.0), (0.0, 1.0), (-0.5, 2.0)])
    if d.opset < 11:
        bounds = d.one_of([{"min": low, "max": high}, {"min": low}, {"max": high}])
        return d.add("Clip", [x], **bounds)
    lower, upper = d.constant(np.float32(low)), d.constant(np.float32(high))
    return d.add("Clip", [x, *d.one_of([[lower, upper], [lower], [None, upper]])])


def prelu(d: Drawing) -> Value:
    x = d.pick((2, 3, 4))
    shape = d.one_of([(1,), (x.shape[1], *[1] * (x.rank - 2))])
    return d.add("PRelu", [x, d.constant(d.rng.uniform(0, 0.4, shape).astype(np.float32))])


def hard_swish(d: Drawing) -> Value:
    """As it is written before opset 14: x * clip(x + 3) / 6."""
    x = d.pick()
    shifted = d.add("Add", [x, d.constant(np.float32(3))])
    if d.opset < 11:
        inner = d.add("Clip", [shifted], min=0.0, max=6.0)
    else:
        inner = d.add("Clip", [shifted, d.constant(np.float32(0)), d.constant(np.float32(6))])
    return d.add("Div", [d.add("Mul", [x, inner]), d.constant(np.float32(6))])


def swish(d: Drawing) -> Value:
    x = d.pick()
    return d.add("Mul", [x, d.add("Sigmoid", [x])])


def gelu_by_erf(d: Drawing) -> Value:
    if d.opset < 9:
        raise RejectedError("not in this opset")
    x = d.pick()
    root = d.add("Div", [x, d.constant(np.float32(np.sqrt(2)))])
    one = d.add("Add", [d.add("Erf", [root]), d.constant(np.float32(1))])
    return d.add("Mul", [d.add("Mul", [x, one]), d.constant(np.float32(0.5))])


def binary(d: Drawing) -> Value:
    op = d.one_of(["Add", "Add", "Mul", "Sub", "Max", "Min", "Mean", "Sum"])
    x = d.pick()
    others = [v for v in d.values if v.is_float and v.shape == x.shape and v.batched]
    other = d.one_of(others)
    return d.add(op, [x, other] if d.chance(0.5) else [other, x])


def with_constant(d: Drawing) -> Value:
    x = d.pick((2, 3, 4, 5))
    shape = d.one_of([(), (1,), (x.shape[-1],), (x.shape[1], *[1] * (x.rank - 2))])
    op = d.one_of(["Add", "Mul", "Sub", "Div", "Max", "Min"])
    low = 0.5 if op == "Div" else -1.5
    other = d.constant(np.asarray(d.rng.uniform(low, 1.5, shape), np.float32))
    if op in ("Max", "Min") and d.opset < 8:
        raise RejectedError("no broadcasting yet")
    return d.add(op, [x, other] if op == "Div" or d.chance(0.6) else [other, x])


def gate(d: Drawing) -> Value:
    """Channels scaled by what is pooled of them."""
    x = d.pick((4,))
    pooled = d.add("GlobalAveragePool", [x])
    weight = d.weight(x.shape[1], x.shape[1], 1, 1)
    return d.add("Mul", [x, d.add("Sigmoid", [d.add("Conv", [pooled, weight])])])


def soft(d: Drawing) -> Value:
    x = d.pick((2, 3, 4))
    op = d.one_of(["Softmax", "Softmax", "LogSoftmax", "Hardmax"])
    axis = d.one_of([1, x.rank - 1] if d.opset < 11 else [-1, 1, x.rank - 1])
    return d.add(op, [x], axis=axis) if d.chance(0.7) or x.rank == 4 else d.add(op, [x])


def compare(d: Drawing) -> Value:
    x = d.pick()
    op = d.one_of(["Greater", "Less", *(["GreaterOrEqual", "LessOrEqual"] if d.opset >= 12 else [])])
    bound = d.constant(np.asarray(d.rng.uniform(-0.5, 0.5), np.float32))
    is_so = d.add(op, [x, bound])
    if d.chance(0.3):
        is_so = d.add("Not", [is_so])
    if d.chance(0.3):
        is_so = d.add(d.one_of(["And", "Or", "Xor"]), [is_so, d.add("Less", [x, d.constant(np.float32(1))])])
    if d.opset >= 9 and d.chance(0.5):
        other = d.constant(np.asarray(d.rng.uniform(-1, 1), np.float32))
        return d.add("Where", [is_so, x, other] if d.chance(0.5) else [is_so, other, x])
    mask = d.add("Cast", [is_so], to=TensorProto.FLOAT)
    return d.add("Mul", [x, mask])


def choose(d: Drawing) -> Value:
    """If, decided by a constant; the branches read tensors of the outer graph and weights of their own."""
    x = d.pick((2,))
    out = d.integer(2, 5)
    output = d.fresh("if")
    branches = []
    for index in range(2):
        weight = (d.rng.standard_normal((x.shape[1], out)) * 0.4).astype(np.float32)
        name = d.fresh("branch")
        tensor = helper.make_tensor(name, TensorProto.FLOAT, weight.shape, weight.ravel().tolist())
        result = d.fresh("result")
        info = helper.make_tensor_value_info(result, TensorProto.FLOAT, None)
        node = helper.make_node("MatMul", [x.name, name], [result])
        branches.append((helper.make_graph([node], f"branch{index}", [], [info], [tensor]), weight))
    condition = d.chance(0.5)
    chosen = d.constant(np.array(condition), "condition")
    node = helper.make_node(
        "If",
        [chosen.name],
        [output],
        d.node_named("If", d.count),
        then_branch=branches[0][0],
        else_branch=branches[1][0],
    )
    d.nodes.append(node)
    d.ops.append("If")
    return Value(output, x.array @ branches[0 if condition else 1][1], x.batched)


def dropout(d: Drawing) -> Value:
    x = d.pick()
    return d.add("Dropout", [x], ratio=0.5) if d.opset < 12 else d.add("Dropout", [x])


def integers(d: Drawing) -> Value:
    """Classes of a float tensor, which become indices or numbers again."""
    x = d.pick((2, 3))
    if d.chance(0.5):
        index = d.add(d.one_of(["ArgMax", "ArgMin"]), [x], axis=x.rank - 1, keepdims=0)
        if d.chance(0.5):
            return index
        d.keep(index)
        return d.add("Cast", [index], to=TensorProto.FLOAT)
    whole = d.add("Cast", [x], to=TensorProto.INT32)
    return d.add("Cast", [whole], to=TensorProto.FLOAT)


def from_integers(d: Drawing) -> Value:
    x = d.pick(kind=d.one_of(["int", "bool"]))
    if x.array.dtype.kind == "i" and d.opset >= 9 and d.chance(0.3) and 0 <= x.array.min() <= x.array.max() < 50:
        ends = d.constant(np.array([0, 1], np.float32))
        return d.add("OneHot", [x, d.constant(np.int64(50)), ends])
    return d.add("Cast", [x], to=TensorProto.FLOAT)


def power(d: Drawing) -> Value:
    return d.add("Pow", [d.pick(), d.constant(np.float32(d.one_of([2, 3])))])


ELEMENTWISE = (
    unary,
    unary,
    unary,
    unary,
    positive,
    clip,
    clip,
    prelu,
    hard_swish,
    swish,
    gelu_by_erf,
    binary,
    binary,
    binary,
    with_constant,
    with_constant,
    gate,
    soft,
    soft,
    compare,
    choose,
    dropout,
    integers,
    from_integers,
    power,
)
