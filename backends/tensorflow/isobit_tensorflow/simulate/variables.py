"""The simulator's variables: Keras variables under the user's paths, with what belongs to their training."""

from __future__ import annotations

import re
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

#: What TensorFlow does not take in the name of a scope.
_UNFIT = re.compile(r"^[^A-Za-z0-9.]|[^A-Za-z0-9_.>-]")


@dataclass(frozen=True)
class VariableSpec:
    """How to make a variable: its name (a Keras path), shape, type, and what training does with it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    trainable: bool = False
    regularizer: Any = None
    constraint: Any = None

    @classmethod
    def of(cls, name: str, variable: keras.Variable) -> VariableSpec:
        """The specification of a variable of the user's, or of the simulator."""
        return cls(
            name,
            tuple(variable.shape),
            keras.backend.standardize_dtype(variable.dtype),
            bool(variable.trainable),
            keras.regularizers.serialize(variable.regularizer) if variable.regularizer is not None else None,
            keras.constraints.serialize(variable.constraint) if variable.constraint is not None else None,
        )

    def to_record(self) -> dict[str, Any]:
        """As JSON data."""
        return {**asdict(self), "shape": list(self.shape)}


def is_distributed(variable: keras.Variable) -> bool:
    """Whether a variable was made under the scope of a strategy, which has one on each of its devices."""
    return isinstance(variable.value, tf.distribute.DistributedValues)


def native_variable(variable: keras.Variable) -> Any:
    """TensorFlow's variable, of one on several devices that of the first."""
    native = variable.value
    return native.values[0] if is_distributed(variable) else native


def value_of(variable: keras.Variable) -> NDArray[Any]:
    """``variable.numpy()`` in a fifth of its time, which counts where hundreds of small ones are read."""
    native = variable.value
    if is_distributed(variable):
        return np.asarray(variable.numpy())
    return np.asarray(tf.raw_ops.ReadVariableOp(resource=native.handle, dtype=native.dtype).numpy())


def put(variable: keras.Variable, value: Any) -> None:
    """Assign a value that is not there yet: assigning takes longer than looking."""
    if not np.array_equal(value_of(variable), value):
        variable.assign(value)


def make_variable(spec: VariableSpec, value: NDArray[Any] | None = None) -> keras.Variable:
    """A variable of that name, zeros without a `value`."""
    array = np.zeros(spec.shape, spec.dtype) if value is None else np.asarray(value, spec.dtype)
    *scopes, last = (_UNFIT.sub("_", part) or "_" for part in spec.name.split("/"))
    with ExitStack() as stack:
        for scope in scopes:
            stack.enter_context(keras.name_scope(scope))
        real = array.dtype == np.float32
        # the aggregation is for the moving statistics of a distributed batch norm
        aggregation = "none" if spec.trainable else "mean" if real else "only_first_replica"
        variable = keras.Variable(
            array, dtype=spec.dtype, trainable=real, autocast=real, aggregation=aggregation, name=last
        )
    variable.trainable = spec.trainable  # set later: one created as not trainable never gets a gradient
    variable.regularizer = None if spec.regularizer is None else keras.regularizers.deserialize(spec.regularizer)
    variable.constraint = None if spec.constraint is None else keras.constraints.deserialize(spec.constraint)
    return variable
