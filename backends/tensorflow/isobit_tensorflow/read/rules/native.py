"""Operations and preprocessing layers without a rule: one node each, run as Keras runs it, left in float."""

from __future__ import annotations

import inspect
import json
from typing import Any

import keras

from isobit.errors import ModelError
from isobit_tensorflow.kernels.native import NATIVE
from isobit_tensorflow.read.call import Call
from isobit_tensorflow.read.emitter import Value


def native(call: Call) -> Any:
    """A node ``keras::<Class>`` for an operation of `keras.ops`, or ModelError where it cannot be said as data."""
    return _node(call, "keras.ops operation", {})


def native_layer(call: Call) -> Any:
    """A node ``keras::<Class>`` for a layer that has no weights, as it is in inference."""
    parameters = inspect.signature(call.operation.call).parameters
    return _node(call, "layer", {"training": False} if "training" in parameters else {})


def _node(call: Call, what: str, settings: dict[str, Any]) -> Any:
    kind = type(call.operation).__name__
    places: list[Any] = []
    values: list[Value] = []
    arguments = [*call.args, *(v for v in call.kwargs.values())]
    for argument in arguments:
        if isinstance(argument, Value):
            values.append(call.emitter.plain(argument))
            places.append("tensor")
        elif argument is None or isinstance(argument, bool | int | float):
            places.append(argument)
        else:
            raise ModelError(f"{call.name!r}: {kind} with an argument of {type(argument).__name__} is not read")
    if not values:
        raise ModelError(f"{call.name!r}: {kind} reads no tensor of the model")
    record = keras.saving.serialize_keras_object(call.operation)
    if "name" in record["config"]:  # Keras' own depends on what else was built in the process
        record["config"]["name"] = call.reader.name_of(call.operation)
    config = json.dumps(record)
    symbolic = [keras.KerasTensor(value.shape, value.dtype) for value in values]
    stand_ins = iter(symbolic)
    outputs = call.operation.compute_output_spec(*(next(stand_ins) if p == "tensor" else p for p in places), **settings)
    flat = keras.tree.flatten(outputs)
    call.emitter.notes.append(f"{call.name}: {what} {kind} is outside the vocabulary and stays in float")
    attributes = {"operation": config, "arguments": tuple(places), **settings}
    results = [(tuple(t.shape), keras.backend.standardize_dtype(t.dtype)) for t in flat]
    produced = call.emitter.emit_many(f"{NATIVE}{kind}", call.name, values, results, **attributes)
    return keras.tree.pack_sequence_as(outputs, produced)
