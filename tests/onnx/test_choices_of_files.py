"""Where a file chooses otherwise between equal values, the check names the operation; else it does not call it that."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import isobit
from isobit.quantsim.checks.choices import _is_tie
from isobit.quantsim.checks.ties import first_apart
from isobit_onnx.backend import OnnxBackend

ROWS = np.random.default_rng(0).standard_normal((3, 6)).astype(np.float32)
ROWS[:, 4] = ROWS[:, 1] = 4  # the largest twice
ROWS[:, 5] = ROWS[:, 0] = -4  # so is the least

CHOICES = {
    "ArgMax": ([helper.make_node("ArgMax", ["s"], ["y"], axis=1, name="choice")], TensorProto.INT64),
    "ArgMax without its axis": (
        [helper.make_node("ArgMax", ["s"], ["y"], axis=-1, keepdims=0, name="choice")], TensorProto.INT64,
    ),
    "ArgMin": ([helper.make_node("ArgMin", ["s"], ["y"], axis=1, name="choice")], TensorProto.INT64),
    "TopK": ([helper.make_node("TopK", ["s", "k"], ["v", "y"], axis=1, name="choice")], TensorProto.INT64),
    "Greater": ([helper.make_node("Greater", ["s", "mirrored"], ["y"], name="choice")], TensorProto.BOOL),
    "LessOrEqual": ([helper.make_node("LessOrEqual", ["s", "mirrored"], ["y"], name="choice")], TensorProto.BOOL),
}  # fmt: skip


def _model(choice: str) -> onnx.ModelProto:
    """Scores with a shift, and what is chosen of them, by them or by comparison with the scores in reverse."""
    chooser, kind = CHOICES[choice]
    nodes = [
        helper.make_node("Add", ["x", "shift"], ["s"]),
        helper.make_node("Gather", ["x", "reverse"], ["mirrored"], axis=1),
        helper.make_node("MatMul", ["x", "weight"], ["z"]),
        *chooser,
    ]
    constants = {"shift": np.zeros(6, np.float32), "reverse": np.arange(6)[::-1].copy(), "k": np.array([1])}
    constants["weight"] = np.random.default_rng(1).standard_normal((6, 8)).astype(np.float32)
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 6])],
        [helper.make_tensor_value_info("y", kind, None), helper.make_tensor_value_info("z", TensorProto.FLOAT, [3, 8])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _remark(choice: str, shift: NDArray[np.float32], folder: Path) -> str:
    """What is said of a file that adds `shift` to the scores."""
    sim = isobit.quantize(_model(choice), ROWS, recipe="basic", method="minmax", progress=False)
    model = onnx.load(sim.export(folder)["model"])
    stored = next(tensor for tensor in model.graph.initializer if tensor.dims == [6] and tensor.data_type == 1)
    stored.CopyFrom(numpy_helper.from_array(shift, stored.name))
    onnx.save(model, folder / "other.onnx")
    assert sim.simulation.reference is not None
    return first_apart(sim.backend_model, folder / "other.onnx", sim.simulation.reference[0], OnnxBackend())


@pytest.mark.parametrize("choice", CHOICES)
def test_ties_are_named(choice: str, tmp_path: Path) -> None:
    bits = np.array([0, 0, 0, 0, 1e-6, -1e-6], np.float32)
    said = _remark(choice, bits, tmp_path)
    assert said.startswith("it begins with ")
    assert f"results of {choice.split()[0]} 'choice', which chooses there between values that are equal" in said


@pytest.mark.parametrize("choice", CHOICES)
def test_what_is_no_tie_is_not_called_one(choice: str, tmp_path: Path) -> None:
    assert "chooses" not in _remark(choice, np.array([0, 0, 0, 0, 0.5, -0.5], np.float32), tmp_path)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_infinities_are_ties_of_themselves_alone() -> None:
    """A masked place scores -inf, and infinity less infinity is no number."""
    left, right = np.array([-np.inf, np.inf, -np.inf, 1]), np.array([-np.inf, -np.inf, 0, 1 + 1e-7])
    np.testing.assert_array_equal(_is_tie(left, right, [left, right]), [True, False, False, True])
