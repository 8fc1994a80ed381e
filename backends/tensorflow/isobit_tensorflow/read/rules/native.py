"""What has no rule and cannot be opened: one node each, run as Keras runs it, left in float."""

from __future__ import annotations

import inspect
import json
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from isobit.errors import ModelError
from isobit.graph import Node
from isobit.graph.ops import VARIABLES
from isobit_tensorflow.kernels.native import NATIVE, keep_operation, native_operation, run_native
from isobit_tensorflow.kernels.operands import Operand
from isobit_tensorflow.read.call import Call
from isobit_tensorflow.read.emitter import Value
from isobit_tensorflow.read.parameters import is_parameter

#: Values of an array among the settings of an operation.
_LARGEST_ARRAY = 4096


def native(call: Call) -> Any:
    """A node ``keras::<Class>`` for an operation of `keras.ops`, or ModelError where it cannot be said as data."""
    return _node(call, {}, f"keras.ops operation {_kind(call)} is outside the vocabulary and stays in float")


def native_layer(call: Call) -> Any:
    """A node ``keras::<Class>`` for a layer that has no weights, as it is in inference."""
    return _node(call, _inference(call), f"layer {_kind(call)} is outside the vocabulary and stays in float")


def whole_layer(call: Call, reason: str) -> Any:
    """A node ``keras::<Class>`` for a layer with all that it holds. Raises ModelError where Keras cannot run it."""
    return _node(call, _inference(call), f"{_kind(call)} runs as Keras runs it and stays in float: {reason}")


def _kind(call: Call) -> str:
    return type(call.operation).__name__


def _inference(call: Call) -> dict[str, Any]:
    return {"training": False} if "training" in inspect.signature(call.operation.call).parameters else {}


def _node(call: Call, settings: dict[str, Any], note: str) -> Any:
    kind, emitter = _kind(call), call.emitter
    values: list[Value | str] = []
    symbolic: list[Any] = []

    def place(leaf: Any) -> Any:
        """What stands for an argument in the attribute of the node: a tensor's index among the inputs, or itself."""
        if isinstance(leaf, Value):
            values.append(emitter.plain(leaf))
            symbolic.append(keras.KerasTensor(leaf.shape, leaf.dtype))
        elif is_parameter(leaf):
            values.append(emitter.weight(leaf, (), f"{call.name}/constant"))
            symbolic.append(keras.KerasTensor(tuple(leaf.shape), keras.backend.standardize_dtype(leaf.dtype)))
        elif leaf is None or isinstance(leaf, bool | int | float | str):
            return leaf
        elif isinstance(leaf, np.ndarray | np.generic) and leaf.size <= _LARGEST_ARRAY:
            return {"array": leaf.tolist(), "dtype": str(leaf.dtype)}
        elif isinstance(leaf, tf.DType):
            return leaf.name
        elif inspect.isroutine(leaf):  # what a loop does: it is in no file
            return {"function": keep_operation(f"{call.name}/{getattr(leaf, '__name__', 'function')}", leaf)}
        else:
            raise ModelError(f"{call.name!r}: {kind} with an argument of {type(leaf).__name__} is not read")
        return {"tensor": len(values) - 1}

    places = keras.tree.map_structure(place, [list(call.args), dict(call.kwargs)], none_is_leaf=True)
    if not any(isinstance(value, Value) for value in values):
        raise ModelError(f"{call.name!r}: {kind} reads no tensor of the model")
    config, operation = _config(call)
    stand_ins = iter(symbolic)
    args, named = keras.tree.map_structure(
        lambda leaf: next(stand_ins) if isinstance(leaf, Value) or is_parameter(leaf) else leaf,
        [list(call.args), dict(call.kwargs)],
        none_is_leaf=True,
    )
    try:
        outputs = operation.compute_output_spec(*args, **named, **settings)
    except Exception as error:  # whatever the user's layers raise
        raise ModelError(f"{call.name!r}: Keras does not run {kind} made from its configuration") from error
    variables = _variables(call, operation)
    is_layer = isinstance(call.operation, keras.layers.Layer)
    has_functions = any(inspect.isroutine(leaf) for leaf in keras.tree.flatten((call.args, dict(call.kwargs))))
    if not is_layer and operation is call.operation:  # which no configuration makes, as it holds functions
        has_functions = True
    attributes: dict[str, Any] = {"operation": config, "arguments": json.dumps(places), **settings}
    if variables:
        attributes[VARIABLES] = len(variables)
    emitter.notes.append(f"{call.name}: {note}")
    flat = keras.tree.flatten(outputs)
    results = [(tuple(t.shape), keras.backend.standardize_dtype(t.dtype)) for t in flat]
    found = [dtype for _, dtype in results]
    if variables or has_functions or is_layer:
        found = _traced(call, kind, attributes, symbolic, variables, has_functions)
    made = [(shape, other) for (shape, _), other in zip(results, found, strict=True)]
    produced = emitter.emit_many(f"{NATIVE}{kind}", call.name, [*values, *variables], made, **attributes)
    typed = [_as_said(call, value, dtype) for value, (_, dtype) in zip(produced, results, strict=True)]
    return keras.tree.pack_sequence_as(outputs, typed)


def _as_said(call: Call, value: Value, dtype: str) -> Value:
    """The value in the type that Keras says it has: a look-up as vectors gives whole numbers, and says real ones."""
    dtype = call.emitter.in_float32(dtype)
    if value.dtype == dtype:
        return value
    return call.emitter.emit("Cast", f"{value.name}/{dtype}", [value], value.shape, dtype, to=dtype)


def _traced(
    call: Call, kind: str, attributes: dict[str, Any], symbolic: list[Any], variables: list[str], has_functions: bool
) -> list[str]:
    """The types that an operation gives.

    Raises ModelError where TensorFlow cannot trace it, as a branch on values or a function that holds a symbolic
    tensor, and where a function reads variables: nobody would train, quantize or save those.
    """
    weights = call.emitter.weights
    specs = [tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in symbolic]
    specs += [tf.TensorSpec(weights[name].shape, weights[name].dtype) for name in variables]
    node = Node(call.name, f"{NATIVE}{kind}", tuple(map(str, range(len(specs)))), (), attributes, ())
    run = tf.function(lambda *tensors: [r.tensor for r in run_native(node, *map(Operand, tensors))], autograph=False)
    try:
        concrete = run.get_concrete_function(*specs)
    except Exception as error:  # whatever the user's layers raise
        raise ModelError(f"{call.name!r}: TensorFlow does not trace {kind}") from error
    if has_functions and any(outer.dtype == tf.resource for outer, _ in concrete.graph.captures):
        raise ModelError(f"{call.name!r}: a function that {kind} calls reads variables of its own")
    return [tensor.dtype.name for tensor in concrete.outputs]


def _config(call: Call) -> tuple[str, Any]:
    """The operation as data, and what Keras makes of the data; the operation itself where it makes another one."""
    try:
        record = keras.saving.serialize_keras_object(call.operation)
        if "name" in record["config"]:  # Keras' own depends on what else was built in the process
            record["config"]["name"] = call.reader.name_of(call.operation)
        config = json.dumps(record)
        made = native_operation(config)
        if _shapes(made) == _shapes(call.operation):
            return config, made
    except Exception:  # a layer that was not made to be saved, or whose class nobody else can import
        pass
    return keep_operation(call.name, call.operation), call.operation


def _shapes(operation: Any) -> list[tuple[int, ...]]:
    return [tuple(weight.shape) for weight in getattr(operation, "weights", ())]


def _variables(call: Call, operation: Any) -> list[str]:
    """The constants that stand for the variables of a layer, in the order of `weights`."""
    return [call.emitter.weight(variable) for variable in getattr(call.operation, "weights", ())]
