"""Objects that no backend opens: what each is, and the line that makes a model of it, told without its framework."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from isobit.data.arrays import is_array

_EXPECTED = "a model is a torch.nn.Module, a Keras model, an onnx.ModelProto, or the path of a .onnx or .keras file"

#: What classes of frameworks are, by the start of their module and their own name, and the line that goes on from them.
_BY_CLASS: Mapping[tuple[str, str], tuple[str, str]] = {
    ("torch.export", "ExportedProgram"): ("a program of torch.export", "isobit.quantize(program.module(), data)"),
    ("onnxruntime", "InferenceSession"): (
        "a session of onnxruntime, which does not give its model back",
        "isobit.quantize('model.onnx', data), by the path that the session was made from",
    ),
    ("isobit", "Compressed"): ("what isobit.compress found", "isobit.quantize(small.model, data)"),
    ("transformers", "Pipeline"): ("a pipeline of transformers", "isobit.quantize(pipeline.model.eval(), data)"),
    ("tensorflow", "Interpreter"): (
        "an interpreter of TensorFlow Lite",
        "python -m tf2onnx.convert --tflite model.tflite --output model.onnx",
    ),
    ("ai_edge_litert", "Interpreter"): (
        "an interpreter of TensorFlow Lite",
        "python -m tf2onnx.convert --tflite model.tflite --output model.onnx",
    ),
    ("tensorflow", "_UserObject"): (
        "a loaded TensorFlow SavedModel, which has no layers to read",
        "python -m tf2onnx.convert --saved-model FOLDER --output model.onnx",
    ),
    **{
        ("tensorflow", kind): (
            "a function or module of TensorFlow, whose variables belong to no layers",
            "tf2onnx.convert.from_function(function, [tf.TensorSpec(...)], output_path='model.onnx'), then quantize it",
        )
        for kind in ("Function", "ConcreteFunction", "Module")
    },
    ("keras", "Layer"): (
        "a Keras layer",
        "isobit.quantize(keras.Sequential([keras.Input(shape=...), layer]), data)",
    ),
    ("tf_keras", "Model"): (
        "a model of Keras 2",
        "model.save('model.h5'), then isobit.quantize(keras.saving.load_model('model.h5', compile=False), data)",
    ),
}

_LOAD = "module.load_state_dict({weights}), then isobit.quantize(module.eval(), data)"


def advice(model: object) -> str:
    """What an object is, and how a model that a backend opens is made of it; else what a model is."""
    what, line = _known(model)
    return f"it is {what}: {line}" if what else _EXPECTED


def _known(model: object) -> tuple[str, str]:
    if model is None:
        return "no model", f"isobit.quantize(model, data), where {_EXPECTED}"
    if isinstance(model, Mapping):
        return _weights(model)
    if isinstance(model, type):
        return f"the class {model.__name__}", f"isobit.quantize({model.__name__}(...), data), with an object of it"
    if inspect.ismethod(model):
        return f"a method of a {type(model.__self__).__name__}", "isobit.quantize(model, data), with the object itself"
    if inspect.isroutine(model) or type(model).__module__ == "functools":
        line = "make it the forward of a torch.nn.Module, or the call of a Keras layer, and quantize that"
        return "a function, and the parts of a model have names", line
    if is_array(model) or isinstance(model, Sequence):
        return "data", "isobit.quantize(model, data), with the model first"
    for kind in type(model).__mro__:
        for (module, name), found in _BY_CLASS.items():
            if kind.__name__ == name and f"{kind.__module__}.".startswith(f"{module}."):
                return found
    return "", ""


def _weights(model: Mapping[Any, Any]) -> tuple[str, str]:
    """Weights by name, or a checkpoint that holds them under one of its keys."""
    for key, value in model.items():
        if isinstance(value, Mapping) and value and all(map(is_array, value.values())):
            return "a checkpoint", _LOAD.format(weights=f"checkpoint[{key!r}]")
    if model and all(map(is_array, model.values())):
        return "a dict of arrays, as state_dict() gives them", _LOAD.format(weights="weights")
    return "", ""
