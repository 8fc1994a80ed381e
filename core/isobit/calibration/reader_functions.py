"""What reads a quantized tensor, where that is one elementwise function: errors matter behind it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isobit.graph.graph import Graph
from isobit.placement.plan import Placement, Plan

Floats = NDArray[np.float64]
#: An elementwise function, on arrays.
Function = Callable[[Floats], Floats]


def reader_functions(graph: Graph, plan: Plan) -> dict[str, Function]:
    """The function that reads each group of tensors with one encoding, by the group's name; others are not in it."""
    functions = {}
    for group, members in plan.groups().items():
        function = _function_of(graph, members)
        if function is not None:
            functions[group] = function
    return functions


def _function_of(graph: Graph, members: Sequence[Placement]) -> Function | None:
    names = {member.tensor for member in members}
    readers: set[tuple[Any, ...]] = set()
    for name in names:
        if name in graph.outputs.values():
            return None
        for use in graph.uses(name):
            if use.index == 0 and all(output in names for output in use.node.outputs):
                continue  # it moves the values, and their readers follow
            if use.index != 0 or use.node.op not in _FUNCTIONS:
                return None
            readers.add((use.node.op, *sorted(use.node.attributes.items())))
    if len(readers) != 1:
        return None
    op, *attributes = next(iter(readers))
    return _made(str(op), tuple(attributes))


@cache
def _made(op: str, attributes: tuple[Any, ...]) -> Function:
    """The function of an operation: the same object each time, so that what was chosen for it is known again."""
    return _FUNCTIONS[op](dict(attributes))


def _clip(attributes: Mapping[str, object]) -> Function:
    low, high = _number(attributes, "min", -math.inf), _number(attributes, "max", math.inf)
    return lambda x: np.clip(x, low, high)


def _hard_sigmoid(alpha: float, beta: float) -> Function:
    return lambda x: np.clip(alpha * x + beta, 0.0, 1.0)


def _number(attributes: Mapping[str, object], name: str, otherwise: float) -> float:
    value = attributes.get(name)
    return otherwise if value is None else float(str(value))


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -500, 500))))


def _softplus(x: Floats) -> Floats:
    return np.logaddexp(0.0, x)


def _gelu(attributes: Mapping[str, object]) -> Function:
    if attributes.get("approximate") == "tanh":
        return lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    erf = np.vectorize(math.erf, otypes=[np.float64])
    return lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2)))


_FUNCTIONS: Mapping[str, Callable[[Mapping[str, object]], Function]] = {
    "Relu": lambda _: lambda x: np.maximum(x, 0.0),
    "Clip": _clip,
    "LeakyRelu": lambda a: lambda x: np.where(x < 0, _number(a, "alpha", 0.01) * x, x),
    "Elu": lambda a: lambda x: np.where(x < 0, _number(a, "alpha", 1.0) * np.expm1(np.minimum(x, 0.0)), x),
    "HardSigmoid": lambda a: _hard_sigmoid(_number(a, "alpha", 0.2), _number(a, "beta", 0.5)),
    "HardSwish": lambda _: lambda x: x * np.clip(x / 6 + 0.5, 0.0, 1.0),
    "Swish": lambda _: lambda x: x * _sigmoid(x),
    "Mish": lambda _: lambda x: x * np.tanh(_softplus(x)),
    "Gelu": _gelu,
    "Sigmoid": lambda _: _sigmoid,
    "Tanh": lambda _: np.tanh,
    "Softplus": lambda _: _softplus,
}
