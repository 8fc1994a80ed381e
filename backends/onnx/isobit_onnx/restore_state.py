"""An OnnxModel made anew from the bytes of its state."""

from __future__ import annotations

from collections.abc import Sequence

from isobit.backend import check_quantizers
from isobit_onnx.model import OnnxModel
from isobit_onnx.run.conditions import ExampleConditions
from isobit_onnx.state import load


def restore(state: bytes, providers: Sequence[str] = ()) -> OnnxModel:
    """The model that `OnnxModel.state` wrote, to run on `providers`. Raises ModelError for other bytes."""
    float_model, encodings, off, decided = load(state)
    model = OnnxModel(float_model, providers)
    model.conditions = ExampleConditions(None, decided) if decided else None
    check_quantizers(model.graph, encodings)
    model.set_state(encodings, off)
    return model
