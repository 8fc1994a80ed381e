"""The opened float model is compared with the one that was given, and the first tensor that differs is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import isobit
from isobit.errors import ModelError
from isobit.techniques import CorrectBias
from isobit_onnx.backend import OnnxBackend
from isobit_onnx.model import OnnxModel

X = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)


def model(scale: float = 1.0, op: str = "Relu") -> onnx.ModelProto:
    """Two products with an operation between them; `scale` multiplies the second weight."""
    rng = np.random.default_rng(1)
    weights = {"w1": rng.standard_normal((4, 6)), "w2": scale * rng.standard_normal((6, 5))}
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"], "first"),
        helper.make_node(op, ["a"], ["b"], "middle"),
        helper.make_node("MatMul", ["b", "w2"], ["y"], "second"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def misread(monkeypatch: pytest.MonkeyPatch, other: onnx.ModelProto) -> None:
    """The backend opens `other`, whatever is given."""

    def opened(self: OnnxBackend, given: Any, example_inputs: Any = None) -> OnnxModel:
        result = plain(self, other)
        result.given = given
        return result

    plain = OnnxBackend.open
    monkeypatch.setattr(OnnxBackend, "open", opened)


@pytest.mark.parametrize(
    ("other", "tensor"), [(model(scale=1.1), "second"), (model(op="Abs"), "middle"), (model(op="Sigmoid"), "middle")]
)
@pytest.mark.parametrize("work", ["quantize", "calibrate", "apply"])
def test_a_model_that_is_misread_is_an_error(
    monkeypatch: pytest.MonkeyPatch, other: onnx.ModelProto, tensor: str, work: str
) -> None:
    misread(monkeypatch, other)
    works = {
        "quantize": lambda: isobit.quantize(model(), X),
        "calibrate": lambda: isobit.QuantSim(model()).calibrate(X),
        "apply": lambda: isobit.QuantSim(model()).apply(CorrectBias(), data=X),
    }
    with pytest.raises(ModelError, match=f"output 'y' is .* dB from it .*first tensor that differs is '{tensor}'"):
        works[work]()


def test_the_check_can_be_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    misread(monkeypatch, model(op="Abs"))
    assert isobit.quantize(model(), X, check=False, method="minmax").calibration is not None


@pytest.mark.parametrize("kind", ["path", "proto", "ir"])
def test_the_same_model_in_every_form_passes(tmp_path: Path, kind: str) -> None:
    onnx.save(model(), tmp_path / "m.onnx")
    given = {"path": tmp_path / "m.onnx", "proto": model(), "ir": ir.from_proto(model())}[kind]
    assert not [note for note in isobit.quantize(given, X, method="minmax").report.notes if "as given" in note]


def test_a_file_that_is_gone_is_said(tmp_path: Path) -> None:
    onnx.save(model(), tmp_path / "m.onnx")
    sim = isobit.QuantSim(tmp_path / "m.onnx")
    (tmp_path / "m.onnx").unlink()
    sim.calibrate(X)
    assert any("was not compared with the model as given" in note for note in sim.report.notes)


def test_the_model_as_given_is_run_at_the_first_calibration_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    run_given, batches = OnnxModel.run_given, []

    def counting(self: OnnxModel, batch: dict[str, np.ndarray], *names: object) -> dict[str, np.ndarray]:
        batches.append(batch)
        return run_given(self, batch, *names)

    monkeypatch.setattr(OnnxModel, "run_given", counting)
    sim = isobit.QuantSim(model())
    for _ in range(3):
        sim.calibrate([X])
    assert len(batches) == 1


def test_a_model_that_is_different_in_every_run_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    monkeypatch.setattr(OnnxModel, "run_given", lambda *_: {"y": rng.standard_normal((8, 5)).astype(np.float32)})
    sim = isobit.quantize(model(), X, method="minmax")
    assert any("different in every run" in note for note in sim.report.notes)


@pytest.mark.parametrize("op", ["RandomNormalLike", "RandomUniformLike", "Bernoulli"])
def test_numbers_that_every_session_draws_alike_are_noise_too(op: str, tmp_path: Path) -> None:
    proto = model()
    drawn = [helper.make_node(op, ["b"], ["drawn"], "drawn"), helper.make_node("Add", ["b", "drawn"], ["c"], "add")]
    if op == "Bernoulli":
        drawn = [helper.make_node("Sigmoid", ["b"], ["p"]), helper.make_node(op, ["p"], ["drawn"]), drawn[1]]
    for place, node in enumerate(drawn):
        proto.graph.node.insert(2 + place, node)
    proto.graph.node[-1].input[0] = "c"
    sim = isobit.quantize(proto, X, method="minmax", recipe="basic")
    assert any("hold its own noise" in note for note in sim.report.notes)
    exported = sim.export(tmp_path / "out")
    assert exported.is_noisy
    assert "try recipe" not in str(exported)
    assert "try recipe" not in exported["summary"].read_text()


def test_noise_in_a_body_is_noise() -> None:
    proto = model()
    value = proto.graph.output[0]
    drawn = [helper.make_node("RandomNormalLike", ["b"], ["n"]), helper.make_node("Add", ["b", "n"], ["c_in"])]
    still = [helper.make_node("Identity", ["b"], ["c_not"])]
    bodies = [
        helper.make_graph(
            nodes, name, [], [helper.make_tensor_value_info(name, value.type.tensor_type.elem_type, None)]
        )
        for nodes, name in ((drawn, "c_in"), (still, "c_not"))
    ]
    positive = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "least"], ["positive"]),
        helper.make_node("If", ["positive"], ["c"], "choose", then_branch=bodies[0], else_branch=bodies[1]),
    ]
    for place, node in enumerate(positive):
        proto.graph.node.insert(2 + place, node)
    proto.graph.initializer.append(helper.make_tensor("least", 1, [], [-1e9]))
    proto.graph.node[-1].input[0] = "c"
    sim = isobit.quantize(proto, X, method="minmax", recipe="basic")
    assert any("hold its own noise" in note for note in sim.report.notes)
