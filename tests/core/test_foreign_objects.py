"""Objects that no backend opens: each error says what it is and the line to write."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

from isobit.backend.foreign_objects import advice


def stranger(module: str, name: str) -> Any:
    """An object of a class of another package."""
    return type(name, (), {"__module__": module})()


WEIGHTS = {"weight": np.zeros((2, 2)), "bias": np.zeros(2)}


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (WEIGHTS, "load_state_dict(weights)"),
        ({"state_dict": WEIGHTS, "epoch": 1}, "load_state_dict(checkpoint['state_dict'])"),
        ({"a": 1}, "a model is a torch.nn.Module"),
        (np.zeros(3), "with the model first"),
        ([1, 2], "with the model first"),
        (dict, "isobit.quantize(dict(...), data)"),
        (pytest.Config.getini, "the forward of a torch.nn.Module"),
        (len, "the forward of a torch.nn.Module"),
        (functools.partial(len), "the forward of a torch.nn.Module"),
        (None, "no model"),
        (stranger("torch.export.exported_program", "ExportedProgram"), "program.module()"),
        (stranger("onnxruntime.capi.onnxruntime_inference_collection", "InferenceSession"), "'model.onnx'"),
        (stranger("isobit.compression.compress", "Compressed"), "isobit.quantize(small.model, data)"),
        (stranger("transformers.pipelines.base", "Pipeline"), "pipeline.model"),
        (stranger("tensorflow.lite.python.interpreter", "Interpreter"), "--tflite"),
        (stranger("keras.src.layers.core.dense", "Layer"), "keras.Sequential([keras.Input(shape=...), layer])"),
        (stranger("tensorflow.python.saved_model.load", "_UserObject"), "--saved-model FOLDER"),
        (stranger("tensorflow.python.module.module", "Module"), "tf2onnx.convert.from_function"),
        (stranger("tensorflow.python.eager.polymorphic_function.polymorphic_function", "Function"), "from_function"),
        (stranger("sklearn.linear_model", "Ridge"), "a model is a torch.nn.Module"),
    ],
)
def test_each_is_known(model: Any, says: str) -> None:
    assert says in advice(model)
