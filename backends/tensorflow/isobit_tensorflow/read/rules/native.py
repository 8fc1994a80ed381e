"""Operations of `keras.ops` without a rule: one node each that runs as Keras runs it and stays in float."""

from __future__ import annotations

import json
from typing import Any

import keras

from isobit.errors import ModelError
from isobit_tensorflow.kernels.native import NATIVE
from isobit_tensorflow.read.call import Call
from isobit_tensorflow.read.emitter import Value


def native(call: Call) -> Any:
    """A node ``keras::<Class>`` for the operation, or ModelError where it cannot be said as data."""
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
    config = json.dumps(keras.saving.serialize_keras_object(call.operation))
    symbolic = [keras.KerasTensor(value.shape, value.dtype) for value in values]
    stand_ins = iter(symbolic)
    outputs = call.operation.compute_output_spec(*(next(stand_ins) if p == "tensor" else p for p in places))
    flat = keras.tree.flatten(outputs)
    call.emitter.notes.append(f"{call.name}: keras.ops operation {kind} is outside the vocabulary and stays in float")
    attributes = {"operation": config, "arguments": tuple(places)}
    results = [(tuple(t.shape), keras.backend.standardize_dtype(t.dtype)) for t in flat]
    produced = call.emitter.emit_many(f"{NATIVE}{kind}", call.name, values, results, **attributes)
    return keras.tree.pack_sequence_as(outputs, produced)
