"""What a layer computes of its own variables: a variable seen with other axes, or a constant that follows from some.

A layer is called inside a function that TensorFlow traces, so that a value which depends on variables alone shows what
it was made of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import keras
import tensorflow as tf
from numpy.typing import NDArray

from isobit.graph import Layout, Permute, View
from isobit.graph.layout import compose


@dataclass(frozen=True, eq=False)
class VariableView:
    """A variable behind transpositions and reshapes."""

    variable: keras.Variable
    layout: Layout
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, eq=False)
class Computed:
    """A constant that a layer computed, of variables (`trainable`: of one that trains) or of nothing but numbers."""

    array: NDArray[Any]
    variables: tuple[keras.Variable, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """As the layer computed it."""
        return tuple(self.array.shape)

    @property
    def dtype(self) -> str:
        """As the layer computed it."""
        return str(self.array.dtype)

    @property
    def trainable(self) -> bool:
        """Whether one of the variables trains."""
        return any(variable.trainable for variable in self.variables)


#: A variable, a view of one, or what was computed: what may stand for a weight in the graph. Keras has no types.
Parameter: TypeAlias = Any


def is_parameter(value: Any) -> bool:
    """Whether a value may stand for a weight in the graph."""
    return isinstance(value, keras.Variable | VariableView | Computed)


def call_traced(
    call: Callable[[], Any], variables: Sequence[keras.Variable], known: dict[Any, Parameter]
) -> tuple[Any, dict[int, Parameter]]:
    """What `call` returns, symbolic tensors, and the parameters among the arguments on the way, by their id.

    `known` are those of earlier calls, by how they were computed: what each step of a loop computes is one constant.
    A call that needs values while it runs is made as it is: what it computed of variables is then a constant.
    """
    held: list[Any] = []

    def traced() -> list[tf.Tensor]:
        outputs = call()
        tensors = list(_constants(outputs).values())
        held[:] = [outputs, tensors]
        return tensors

    try:
        concrete = tf.function(traced, autograph=False).get_concrete_function()
        values = concrete()
    except Exception:  # whatever a layer does with values it has not: the call without a trace says what is wrong
        outputs = call()
        return outputs, {key: Computed(value.numpy(), ()) for key, value in _constants(outputs).items()}
    outputs, tensors = held
    handles = {id(variable.value.handle): variable for variable in variables}
    captured = {id(inner): handles[id(outer)] for outer, inner in concrete.graph.captures if id(outer) in handles}
    return outputs, {
        id(tensor): known.setdefault(_formula(tensor, captured), _parameter(tensor, value.numpy(), captured))
        for tensor, value in zip(tensors, values, strict=True)
    }


def _constants(outputs: Any) -> dict[int, tf.Tensor]:
    """Tensors of TensorFlow's own among the arguments of the operations that lead to symbolic outputs, by id.

    Those among the outputs are constants as well.
    """
    leaves = keras.tree.flatten(outputs)
    constants: dict[int, tf.Tensor] = {id(leaf): leaf for leaf in leaves if _is_tensor(leaf)}
    seen: set[int] = set()
    waiting = [leaf for leaf in leaves if isinstance(leaf, keras.KerasTensor)]
    while waiting:
        tensor = waiting.pop()
        history = getattr(tensor, "_keras_history", None)
        if id(tensor) in seen or history is None or history.operation is None:
            continue
        seen.add(id(tensor))
        arguments = history.operation._inbound_nodes[history.node_index].arguments
        for leaf in keras.tree.flatten((arguments.args, arguments.kwargs)):
            if isinstance(leaf, keras.KerasTensor):
                waiting.append(leaf)
            elif _is_tensor(leaf):
                constants[id(leaf)] = leaf
    return constants


def _is_tensor(leaf: Any) -> bool:
    return tf.is_tensor(leaf) and not isinstance(leaf, keras.Variable)


def _parameter(tensor: tf.Tensor, value: NDArray[Any], captured: Mapping[int, keras.Variable]) -> Parameter:
    if not hasattr(tensor, "graph") or isinstance(tensor, tf.Variable):
        return Computed(value, ())  # made before the call, or a variable that Keras does not know
    view = _view(tensor, captured)
    if view is None:
        return Computed(value, tuple(_read(tensor, captured).values()))
    variable, layout = view
    return VariableView(variable, layout, tuple(value.shape), str(value.dtype)) if layout else variable


def _formula(tensor: tf.Tensor, captured: Mapping[int, keras.Variable], depth: int = 0) -> Any:
    """What is equal for two tensors that are computed in the same way of the same variables."""
    if not hasattr(tensor, "graph") or isinstance(tensor, tf.Variable):
        return object()  # equal to no other
    if id(tensor) in captured:
        return "variable", id(captured[id(tensor)])
    op = tensor.op
    draws = op.op_def.is_stateful and op.type != "ReadVariableOp"
    if op.type == "Placeholder" or op.control_inputs or draws or depth == _DEEPEST:
        return object()
    record = op.node_def
    settings = tuple((name, record.attr[name].SerializeToString()) for name in sorted(record.attr))
    return op.type, settings, tensor.value_index, tuple(_formula(source, captured, depth + 1) for source in op.inputs)


#: Formulas that are longer are taken for different ones.
_DEEPEST = 8


def _view(tensor: tf.Tensor, captured: Mapping[int, keras.Variable]) -> tuple[keras.Variable, Layout] | None:
    """The variable that a tensor is, with other axes at most."""
    op = tensor.op
    if op.type == "ReadVariableOp":
        variable = captured.get(id(op.inputs[0]))
        return None if variable is None else (variable, ())
    if op.type == "Identity":
        return _view(op.inputs[0], captured)
    if op.type not in ("Transpose", "Reshape"):
        return None
    source, order = _view(op.inputs[0], captured), tf.get_static_value(op.inputs[1])
    if source is None or order is None:
        return None
    variable, layout = source
    before = tuple(int(n) for n in op.inputs[0].shape)
    after = tuple(int(n) for n in tensor.shape)
    step: Layout = (Permute(tuple(int(n) for n in order)),) if op.type == "Transpose" else (View(after, before),)
    return variable, compose(layout, step)


def _read(tensor: tf.Tensor, captured: Mapping[int, keras.Variable]) -> dict[int, keras.Variable]:
    """The variables that a tensor follows from."""
    found: dict[int, keras.Variable] = {}
    seen: set[int] = set()
    waiting = [tensor]
    while waiting:
        current = waiting.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        if id(current) in captured:
            found[id(current)] = captured[id(current)]
        waiting += current.op.inputs
    return found
