"""Arithmetic between a variable and a symbolic tensor, in either order: Keras has it with the tensor on the left only.

In ``self.scale * x`` Keras would hand the symbolic ``x`` to TensorFlow, which refuses it. While a layer is opened, such
an expression is the operation of `keras.ops`, with the variable as its argument.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import keras
from keras import ops

from isobit_tensorflow.read.in_this_thread import in_this_thread

_OPERATORS: Mapping[str, Callable[[Any, Any], Any]] = {
    "__add__": ops.add, "__sub__": ops.subtract, "__mul__": ops.multiply, "__truediv__": ops.true_divide,
    "__floordiv__": ops.floor_divide, "__mod__": ops.mod, "__pow__": ops.power, "__matmul__": ops.matmul,
    "__lt__": ops.less, "__le__": ops.less_equal, "__gt__": ops.greater, "__ge__": ops.greater_equal,
}  # fmt: skip


@contextmanager
def symbolic_arithmetic() -> Iterator[None]:
    """The operators of variables take symbolic tensors."""
    own = {name: keras.Variable.__dict__.get(name) for name in _OPERATORS}
    for name, operation in _OPERATORS.items():
        setattr(keras.Variable, name, _operator(operation, getattr(keras.Variable, name)))
    try:
        yield
    finally:
        for name, method in own.items():
            if method is None:
                delattr(keras.Variable, name)
            else:
                setattr(keras.Variable, name, method)


def _operator(operation: Callable[[Any, Any], Any], usual: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def method(self: Any, other: Any) -> Any:
        return operation(self, other) if isinstance(other, keras.KerasTensor) else usual(self, other)

    return in_this_thread(method, usual)
