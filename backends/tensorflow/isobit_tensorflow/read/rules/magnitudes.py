"""Magnitudes, norms and logarithms to other bases, by the operations of the neutral vocabulary.

What is squared, added up and put under a root or a logarithm needs more than 8 bits on the way: the core sees that in
these steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from keras import ops

from isobit_tensorflow.read.call import Call, Rule
from isobit_tensorflow.read.rules.preprocessing import as_float

LAYERS: Mapping[type, Rule] = {}


def _as(function: Callable[..., Any]) -> Rule:
    """The operation as a function of its tensors, whole numbers as floats."""

    def rule(call: Call) -> Any:
        args = as_float(call, call.x), *call.args[1:]
        return call.reader.open(function, call.name, args, {}, call.operation)

    return rule


def _norm(call: Call) -> Any:
    """Of vectors; of matrices the one of Frobenius."""
    order, axis, keepdims = (call.setting(name) for name in ("ord", "axis", "keepdims"))
    is_vector = axis is not None and len(axis) == 1
    if order == 1 and is_vector:
        return _as(lambda x: ops.sum(ops.abs(x), axis, keepdims))(call)
    if order in (None, "fro") or (order == 2 and is_vector):
        return _as(lambda x: ops.sqrt(ops.sum(ops.square(x), axis, keepdims)))(call)
    return None


OPERATIONS: Mapping[str, Rule] = {
    "Hypot": _as(lambda x, y: ops.sqrt(ops.square(x) + ops.square(y))),
    "Log10": _as(lambda x: ops.log(x) * (1 / math.log(10))),
    "Log2": _as(lambda x: ops.log(x) * (1 / math.log(2))),
    "Log1p": _as(lambda x: ops.log(x + 1.0)),
    "Norm": _norm,
}
