"""Sessions are made once and kept while they fit, and read the weights where they lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import isobit
from isobit.backend import CheckedModel
from isobit.edits import SetWeights
from isobit.encodings import Encoding
from isobit.errors import EditError
from isobit.graph import Tensor
from isobit.techniques import FoldBatchNorms
from isobit.testing.networks import NETWORKS
from isobit_onnx import model as onnx_model
from isobit_onnx.backend import OnnxBackend
from isobit_onnx.export import run_written
from isobit_onnx.model import OnnxModel
from isobit_onnx.read import initializers
from isobit_onnx.read.read_model import read_model
from isobit_onnx.reference_networks import build_onnx
from isobit_onnx.run import observe as onnx_observing
from isobit_onnx.run import session as onnx_session
from isobit_onnx.run.session import Session
from isobit_onnx.translate.translate import translate


def test_a_second_calibration_observes_with_the_session_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = []

    class Counted(onnx_observing.ObservingSession):
        def __init__(self, *args: object, **options: object) -> None:
            sessions.append(self)
            super().__init__(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(onnx_observing, "ObservingSession", Counted)
    network = NETWORKS["residual"]()
    sim = isobit.QuantSim(build_onnx(network))
    sim.calibrate([network.batch(4, seed=0)])
    first = sim.statistics
    sim.calibrate([network.batch(4, seed=1)], "mse")
    assert len(sessions) == 1
    sim.calibrate([network.batch(4, seed=0)])
    assert len(sessions) == 1
    assert all(sim.statistics[site] == first[site] for site in first)
    sim.calibrate([network.batch(4, seed=0)], sample_limit=None)
    assert len(sessions) == 2
    sim.apply(FoldBatchNorms())  # other weights
    sim.calibrate([network.batch(4, seed=0)], sample_limit=None)
    assert len(sessions) == 3
    fresh = isobit.QuantSim(build_onnx(network))
    fresh.apply(FoldBatchNorms())
    fresh.calibrate([network.batch(4, seed=0)], sample_limit=None)
    assert dict(fresh.encodings) == dict(sim.encodings)
    np.testing.assert_array_equal(*(s.run(network.batch(2))[next(iter(s.graph.outputs))] for s in (sim, fresh)))


@pytest.mark.parametrize("limit", [onnx_session.PROTOBUF_LIMIT, 1000])
def test_a_session_takes_large_weights_as_they_are(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_session, "PROTOBUF_LIMIT", limit)
    network = NETWORKS["conv_net"]()
    proto = build_onnx(network)
    model = read_model(proto)
    before = {name: value.const_value for name, value in model.graph.initializers.items()}
    sizes: list[int] = []
    inference_session = onnxruntime.InferenceSession

    def recording(source: object, *args: object, **settings: object) -> object:
        if isinstance(source, bytes):
            sizes.append(len(source))
        return inference_session(source, *args, **settings)

    monkeypatch.setattr(onnxruntime, "InferenceSession", recording)
    session = Session(model)
    monkeypatch.undo()
    assert {name: value.const_value for name, value in model.graph.initializers.items()} == before
    large = sum(tensor.nbytes for tensor in before.values() if tensor is not None and tensor.nbytes >= 1024)
    assert large
    assert bool(sizes) == (limit > 1000)
    assert max(sizes, default=0) < proto.ByteSize() - large / 2
    batch = network.batch(2)
    expected = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, batch)
    for value, expected_value in zip(session.run(batch).values(), expected, strict=True):
        np.testing.assert_allclose(value, expected_value, rtol=1e-5, atol=1e-6)


def test_a_copy_is_not_read_again(monkeypatch) -> None:
    network = NETWORKS["conv_net"]()
    model = CheckedModel.of(OnnxBackend().open(build_onnx(network)))
    model.set_quantizers({Tensor("image"): Encoding.of("int8", 0.1)})
    monkeypatch.setattr("isobit_onnx.model.translate", None)
    copy = model.copy()
    assert copy.graph is model.graph
    batch = network.batch(2)
    for output, values in model.run(batch).items():
        np.testing.assert_array_equal(copy.run(batch)[output], values)


def test_new_weights_of_layers_leave_the_graph_and_other_copies_as_they_are() -> None:
    network = NETWORKS["conv_net"]()
    model = CheckedModel.of(OnnxBackend().open(build_onnx(network)))
    batch = network.batch(2)
    (output,) = model.graph.outputs
    before, copy = model.run(batch)[output], model.copy()
    assert isinstance(copy.inner, OnnxModel)
    layer = next(node for node in model.graph.nodes if node.op == "Conv")
    weight, float_model = layer.inputs[1] or "", copy.inner.float_model
    copy.edit([SetWeights({weight: 2 * copy.weight(weight)})])
    assert copy.inner.float_model is float_model, "nothing was built anew"
    fresh = translate(copy.inner.float_model).graph
    assert [repr(node) for node in copy.graph.nodes] == [repr(node) for node in fresh.nodes]
    assert copy.graph.tensors == fresh.tensors
    assert {n: (w.shape, w.magnitude) for n, w in copy.graph.weights.items()} == {
        n: (w.shape, w.magnitude) for n, w in fresh.weights.items()
    }
    assert np.abs(copy.run(batch)[output] - before).max() > 1e-3
    np.testing.assert_array_equal(model.run(batch)[output], before)
    with pytest.raises(EditError, match="NaN or infinity"):
        copy.edit([SetWeights({weight: np.full_like(copy.weight(weight), np.nan)})])


def test_weights_in_files_are_found_wherever_the_process_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are handed over as arrays, and those of other types and sizes, also inside a branch."""
    table, order = np.arange(2048, dtype=np.float32).reshape(512, 4), np.arange(512)[::-1].copy()
    branches = [
        helper.make_graph(
            [helper.make_node("Add", ["rows", name], [f"{name}_sum"])],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_sum", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(np.full(4, value, np.float32), name)],
        )
        for name, value in (("one", 1.0), ("two", 2.0))
    ]
    nodes = [
        helper.make_node("Gather", ["order", "i"], ["at"]),
        helper.make_node("Gather", ["table", "at"], ["rows"]),
        helper.make_node("If", ["flag"], ["y"], then_branch=branches[0], else_branch=branches[1]),
    ]
    inputs = [
        helper.make_tensor_value_info(*info)
        for info in (("i", TensorProto.INT64, ["n"]), ("flag", TensorProto.BOOL, []))
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])]
    constants = [numpy_helper.from_array(array, name) for name, array in (("table", table), ("order", order))]
    graph = helper.make_graph(nodes, "files", inputs, outputs, constants)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    (tmp_path / "model").mkdir()
    path = tmp_path / "model" / "model.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="weights.data", size_threshold=0)
    monkeypatch.chdir(tmp_path)
    model = OnnxBackend().open(path)
    outputs_of_model = model.run({"i": np.array([0, 5]), "flag": np.array(False)})["y"]
    np.testing.assert_array_equal(outputs_of_model, table[order[[0, 5]]] + 2)


def test_what_nothing_reads_stays_with_the_model() -> None:
    proto = build_onnx(NETWORKS["conv_net"]())
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros(4096, np.float32), "unread"))
    model = ir.from_proto(proto)
    batch = NETWORKS["conv_net"]().batch(2)
    assert Session(model).run(batch).keys() == {"logits"}


def test_a_model_that_onnxruntimes_own_fusions_break_is_run_as_it_is_written() -> None:
    """A layer norm of what was rounded by casts: the fusion reads the integers, and the model does not load."""
    numbers = {"two": 2.0, "epsilon": 1e-5}
    constants = [numpy_helper.from_array(np.float32(value), name) for name, value in numbers.items()]
    constants += [numpy_helper.from_array(np.full(6, value, np.float32), name) for name, value in (("s", 1), ("b", 0))]
    nodes = [
        helper.make_node("Cast", ["x"], ["whole"], to=TensorProto.INT32),
        helper.make_node("Cast", ["whole"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["f"], ["mean"], axes=[-1]),
        helper.make_node("Sub", ["f", "mean"], ["d"]),
        helper.make_node("Pow", ["d", "two"], ["square"]),
        helper.make_node("ReduceMean", ["square"], ["variance"], axes=[-1]),
        helper.make_node("Add", ["variance", "epsilon"], ["shifted"]),
        helper.make_node("Sqrt", ["shifted"], ["root"]),
        helper.make_node("Div", ["d", "root"], ["normal"]),
        helper.make_node("Mul", ["normal", "s"], ["scaled"]),
        helper.make_node("Add", ["scaled", "b"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 6]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], constants)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    with pytest.raises(Exception, match="INVALID_GRAPH"):
        onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    data = np.random.default_rng(3).uniform(-9, 9, (4, 6)).astype(np.float32)
    whole = np.trunc(data)
    centred = whole - whole.mean(-1, keepdims=True)
    expected = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(OnnxBackend().open(proto).run({"x": data})["y"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["inverted_residual", "attention", "recurrent"])
def test_large_weights_are_dequantized_as_they_are_read_in_the_first_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that is run once, as an export checks it, holds no copy of its weights as floats. No bit changes."""
    network = NETWORKS[name]()
    batch = network.batch(4)
    plain = isobit.QuantSim(build_onnx(network))
    plain.calibrate([batch])
    expected = plain.export(tmp_path / "plain").checks
    simulated = plain.run(batch)
    monkeypatch.setattr(initializers, "LARGE_WEIGHTS", 0)
    monkeypatch.setattr(run_written, "_LARGE", 0)
    sim = isobit.QuantSim(build_onnx(network))
    sim.calibrate([batch])
    model = sim.backend_model.inner
    assert isinstance(model, OnnxModel)
    for is_lean in (True, False, False):
        outputs = sim.run(batch)
        assert [session.is_lean for session, _ in model._sessions.values()] == [is_lean]
        for output, values in simulated.items():
            np.testing.assert_array_equal(outputs[output], values)
    assert sim.export(tmp_path / "lean").checks == expected


def test_no_session_holds_large_weights_while_the_given_model_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    network = NETWORKS["inverted_residual"]()
    sim = isobit.QuantSim(build_onnx(network))
    model = sim.backend_model.inner
    assert isinstance(model, OnnxModel)
    held: list[int] = []
    run_given = onnx_model.run_given

    def counting(*arguments: Any) -> Any:
        held.append(len(model._sessions))
        return run_given(*arguments)

    monkeypatch.setattr(onnx_model, "run_given", counting)
    monkeypatch.setattr(initializers, "LARGE_WEIGHTS", 0)
    sim.calibrate([network.batch(4)])
    assert held == [0]


def test_outputs_that_are_kept_hold_no_memory_of_a_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """An array of onnxruntime's lies in its session's memory, and keeps all of it."""
    monkeypatch.setattr(onnx_session, "BLOCKED_COST", 0.0)
    network = NETWORKS["inverted_residual"]()
    sim = isobit.QuantSim(build_onnx(network))
    sim.calibrate([network.batch(4)])
    model = sim.backend_model.inner
    assert isinstance(model, OnnxModel)
    for _ in range(3):  # behind the first the layout changes
        kept = [*sim.run(network.batch(4)).values()]
        assert all(array.flags.owndata for array in kept)
    assert all(array.flags.owndata for array in model.run_given(network.batch(4)).values())


def test_the_plain_session_is_gone_when_the_one_in_blocked_layout_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_session, "BLOCKED_COST", 0.0)
    network = NETWORKS["inverted_residual"]()
    expected: list[bool] = []
    change = Session._change_layout

    def looking(self: Session, model: ir.Model, feeds: Any, outputs: Any) -> None:
        expected.extend(array.flags.owndata for array in outputs.values())
        change(self, model, feeds, outputs)

    monkeypatch.setattr(Session, "_change_layout", looking)
    isobit.QuantSim(build_onnx(network)).calibrate([network.batch(4)])
    assert expected
    assert all(expected)
