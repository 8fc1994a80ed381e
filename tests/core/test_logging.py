"""What the library logs: nothing that anybody sees unless asked, and then what it decided, by module."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from numpy_backend import NumpyBackend, NumpyModel
from sketch import Sketch

from isobit import QuantSim
from isobit.canonical import canonicalize
from isobit.edits import AddBias, Insert, NewNode, Replace, SetWeights, plan_edits
from isobit.graph import Tensor


def model() -> NumpyModel:
    sketch = Sketch()
    y = sketch.node("Identity", sketch.input("x", "N", 4), name="same", shape=("N", 4))
    y = sketch.node("MatMul", y, sketch.random("fc.w", 4, 3), name="fc", shape=("N", 3))
    y = sketch.node("Relu", y, name="relu", shape=("N", 3))
    return NumpyModel(canonicalize(sketch.graph(y)), {"fc.w": sketch.values["fc.w"].T})


def texts(caplog: pytest.LogCaptureFixture, module: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == module]


def test_canonical_passes_say_what_they_changed(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "isobit"):
        model()
    said = texts(caplog, "isobit.canonical")
    assert "drop_identities: changed fc; removed same" in said
    assert "to_linear: changed fc; removed none" in said
    assert not any(text.startswith("fuse_activations") for text in said), "it changed nothing"
    assert said[-1] == "canonical form: 2 nodes, 1 constants"


def test_edits_say_where(caplog: pytest.LogCaptureFixture) -> None:
    opened = model()
    edits = [
        SetWeights({"fc.w": np.zeros((3, 4))}),
        Replace("relu", (NewNode("Tanh"),)),
        Insert(Tensor("fc"), (NewNode("Neg"),)),
        AddBias("fc", np.zeros(3)),
    ]
    with caplog.at_level(logging.DEBUG, "isobit.edits.draft"):
        plan_edits(opened.graph, edits, opened.weight)
    assert texts(caplog, "isobit.edits.draft") == [
        "edit 1: SetWeights at fc.w",
        "edit 2: Replace at relu",
        "edit 3: Insert at fc",
        "edit 4: AddBias at fc",
        "4 edits: 3 steps, 2 constants",
    ]


def test_a_calibration_says_what_it_placed_and_resolved(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "isobit"):
        sim = QuantSim(model(), backend=NumpyBackend())
        sim.calibrate([{"x": np.ones((2, 4), np.float32)}], progress=False)
    assert any(text.startswith("placed on target default: ") for text in texts(caplog, "isobit.placement.place"))
    said = texts(caplog, "isobit.calibration.resolve")
    assert any(text.startswith("x: minmax represents 1 to 1 as uint8") for text in said)
    assert any(text.startswith("resolved ") for text in said)


def test_nothing_is_printed_by_itself(capfd: pytest.CaptureFixture[str]) -> None:
    QuantSim(model(), backend=NumpyBackend()).calibrate([{"x": np.ones((2, 4), np.float32)}], progress=False)
    assert capfd.readouterr() == ("", "")
