"""Opening: read the model, bring its graph to canonical form, copy its variables."""

from __future__ import annotations

import os
from dataclasses import replace
from threading import RLock
from typing import Any

import keras
import numpy as np

from isobit.canonical import canonicalize
from isobit.errors import ModelError
from isobit.graph.free_name import free_name
from isobit_tensorflow.as_functional import as_functional
from isobit_tensorflow.given_model import GivenModel
from isobit_tensorflow.model import KerasModel
from isobit_tensorflow.read.emitter import Emitter, Value, in_float32
from isobit_tensorflow.read.names import StableNames
from isobit_tensorflow.read.reader import KerasReader, calls_forgotten, is_functional
from isobit_tensorflow.read.rules.table import rule_of
from isobit_tensorflow.simulate.float_weights import order_of
from isobit_tensorflow.simulate.simulator import Simulator
from isobit_tensorflow.simulate.variables import VariableSpec, make_variable
from isobit_tensorflow.training import Training

#: Opening puts hooks into functions of Keras and takes them out again: one model at a time.
_OPENING = RLock()


def open_model(model: Any, example: Any = None) -> KerasModel:
    """Open a copy of a Keras model, or of the model in a ``.keras`` file. Raises ModelError.

    `example` is a batch as ``fit`` takes one, which a subclassed model is opened with; others say their shapes.
    """
    if isinstance(model, str | os.PathLike):
        model = _load(os.fspath(model))
    if isinstance(model, Simulator):
        return KerasModel(model.copy())
    _require_model(model)
    with _OPENING:
        return _opened_by_kind(model, example)


def _opened_by_kind(model: keras.Model, example: Any) -> KerasModel:
    if is_functional(model):
        return _opened(model)
    with calls_forgotten(model):  # of which a tensor's history would tell: those around the model are not asked for
        return _opened(as_functional(model, example), has_tensors=False)


def _opened(model: keras.Model, has_tensors: bool = True) -> KerasModel:
    """A copy of a functional model; `has_tensors` says whether its own tensors can be had later."""
    names = StableNames.of(model)
    emitter, policy = Emitter(names), _policy(model)
    structure_in, structure_out = _structures(model)
    inputs = _inputs(emitter, model, structure_in, names)
    reader = KerasReader(emitter, rule_of, names)
    outputs = reader.read(structure_out, inputs)
    output_names = _outputs(emitter, structure_out, outputs, names)
    emitter.notes += [*_widths(emitter, policy), *names.notes()]
    raw = emitter.graph()
    graph = canonicalize(raw)
    training = Training(emitter.dropout_list(), emitter.momentum)
    variables = {}
    for info in graph.weights.values():
        source = info.source
        if source in variables:
            continue
        original = emitter.variables.get(source)
        if original is not None:
            spec = VariableSpec.of(source, original)
            spec = replace(spec, dtype=in_float32(spec.dtype))
            variables[source] = make_variable(spec, np.array(original.numpy()))
        else:
            array = emitter.arrays[source]
            spec = VariableSpec(source, array.shape, str(array.dtype), source in emitter.trained)
            variables[source] = make_variable(spec, array)
    name_of = {id(tensor): value.name for tensor, value in zip(model.inputs, inputs.values(), strict=True)}
    input_names = keras.tree.map_structure(lambda tensor: name_of[id(tensor)], structure_in)
    native = Simulator(
        graph,
        input_names,
        output_names,
        variables,
        {},
        training,
        name=f"{model.name}_simulated",
        dtype=policy,
    )
    order = order_of(model, {id(variable): name for name, variable in emitter.variables.items()})
    tensors = reader.tensors if has_tensors else {}
    return KerasModel(native, GivenModel.of(model, input_names, output_names, tensors), order)


def _load(path: str) -> keras.Model:
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{path}: not a Keras model that loads safely: {str(error).splitlines()[0]}") from error


def _require_model(model: Any) -> None:
    if not isinstance(model, keras.Model):
        raise ModelError(f"the TensorFlow backend opens Keras models, not {type(model).__name__}")
    if isinstance(model, keras.Sequential) and not getattr(model, "inputs", None):
        raise ModelError(
            f"the Sequential model {model.name!r} is not built: put keras.Input(shape=...) first, or call "
            "model.build(input_shape)"
        )


def _widths(emitter: Emitter, policy: Any) -> list[str]:
    """One line where variables or tensors have another width than what is simulated."""
    for variable in emitter.variables.values():
        emitter.in_float32(keras.backend.standardize_dtype(variable.dtype))
    others = sorted(emitter.other_widths - {getattr(policy, "compute_dtype", "float32")})
    return [f"what is {' or '.join(others)} in the model (variables, inputs, casts) is float32 here"] if others else []


def _structures(model: keras.Model) -> tuple[Any, Any]:
    if isinstance(model, keras.Sequential):
        return model.inputs[0], model.outputs[0]
    return model.input, model.output


def _inputs(emitter: Emitter, model: keras.Model, structure: Any, names: StableNames) -> dict[int, Value]:
    """Inputs by the id of their tensor: named by their key in a dict, else by their layer."""
    keys = {id(tensor): key for key, tensor in structure.items()} if isinstance(structure, dict) else {}
    inputs = {}
    for tensor in model.inputs:
        dtype = keras.backend.standardize_dtype(tensor.dtype)
        name = keys.get(id(tensor)) or names.of_part(tensor._keras_history.operation)
        if dtype == "string":
            raise ModelError(
                f"input {name!r} is texts: run the layers that read them ahead of time, and quantize what is behind "
                "them, keras.Model(y, ...) from y = keras.Input(shape=...) on"
            )
        kind = in_float32(dtype)
        if kind not in ("float32", "int32", "int64", "bool", "uint8", "int8"):
            raise ModelError(f"input {name!r} is {dtype}: an input is real or whole numbers, or truth values")
        inputs[id(tensor)] = emitter.input(name, tensor.shape, dtype)
    return inputs


def _outputs(emitter: Emitter, structure: Any, values: Any, names: StableNames) -> Any:
    """The structure of output names: keys of a dict, else names of the layers that make them."""
    if isinstance(structure, dict) and all(isinstance(tensor, keras.KerasTensor) for tensor in structure.values()):
        for name in structure:
            emitter.output(str(name), values[name])
        return {name: str(name) for name in structure}
    flat = []
    for tensor, value in zip(keras.tree.flatten(structure), keras.tree.flatten(values), strict=True):
        name = free_name(names.of_part(tensor._keras_history.operation), emitter.outputs)
        emitter.output(name, value)
        flat.append(name)
    return keras.tree.pack_sequence_as(structure, flat)


def _policy(model: keras.Model) -> Any:
    """The mixed policy that most layers of the model have, else float32."""
    policies = [layer.dtype_policy for layer in model.layers if layer.weights]
    mixed = [policy for policy in policies if policy.compute_dtype != policy.variable_dtype]
    return mixed[0] if len(mixed) * 2 > len(policies) else "float32"
