"""The simulator's variables: Keras variables under the user's paths, with what belongs to their training, and edits."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from isobit.edits import EditPlan
from isobit.graph import Graph, WeightInfo, to_native
from isobit.graph.layout import resized

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


def edited(
    plan: EditPlan, before: Graph, variables: Mapping[str, keras.Variable]
) -> tuple[Graph, dict[str, keras.Variable]]:
    """The graph of an edit with the layouts of its constants, and its variables: those that stay are the same objects.

    `variables` are those of the graph `before`.
    """
    values: dict[str, NDArray[Any]] = {}
    infos = dict(plan.graph.weights)
    for name, value in plan.weights.items():
        if name not in infos:
            continue  # a later edit of the same list removed it again
        info = infos[name] = _fitted(infos[name], before.weights.get(name))
        source = info.source or name
        old = values.get(source)
        if old is None and source in variables:
            old = variables[source].numpy()
        values[source] = to_native(np.asarray(value), info.layout, old)
    graph = replace(plan.graph, weights=infos)
    kept = {info.source or name for name, info in graph.weights.items()}
    sources = [source for source in dict.fromkeys([*variables, *values]) if source in kept]
    return graph, {source: _changed(source, graph, variables, values) for source in sources}


def _fitted(info: WeightInfo, before: WeightInfo | None) -> WeightInfo:
    """A constant whose shape has changed: its layout follows, or it is kept as it is canonical from now on."""
    if before is None or before.shape == info.shape or not info.layout:
        return info
    try:
        return replace(info, layout=resized(info.layout, info.shape))
    except ValueError:
        return replace(info, layout=())


def _changed(
    source: str, graph: Graph, variables: Mapping[str, keras.Variable], values: Mapping[str, NDArray[Any]]
) -> keras.Variable:
    """A variable with its new value: the same object where the shape stays, a new one where it does not."""
    old, value = variables.get(source), values.get(source)
    if old is not None and value is None:
        return old
    assert value is not None
    if old is None:
        trainable = value.dtype == np.float32 and not _is_frozen(source, graph, variables)
        return make_variable(VariableSpec(source, value.shape, str(value.dtype), trainable), value)
    if tuple(old.shape) == value.shape:
        old.assign(value)
        return old
    return make_variable(VariableSpec(source, value.shape, VariableSpec.of(source, old).dtype, old.trainable), value)


def _is_frozen(source: str, graph: Graph, variables: Mapping[str, keras.Variable]) -> bool:
    """Whether the constants that a new one is read beside, those of its layer, are all kept from training."""
    names = [name for name, info in graph.weights.items() if (info.source or name) == source]
    beside = {
        other for name in names for use in graph.uses(name) for other in use.node.inputs if other in graph.weights
    }
    held = [variables.get(graph.weights[name].source or name) for name in beside if name is not None]
    others = [variable for variable in held if variable is not None]
    return bool(others) and not any(variable.trainable for variable in others)
