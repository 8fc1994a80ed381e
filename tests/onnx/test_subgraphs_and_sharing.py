"""If and Loop bodies, shared constants, several views of one weight, large models."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import isobit
from isobit.encodings import Encoding, QuantSpec
from isobit.graph import Input, Tensor, Weight
from isobit_onnx.backend import OnnxBackend
from isobit_onnx.export import save_model
from isobit_onnx.run import session

RNG = np.random.default_rng(3)


def tensor(name, *shape):
    return numpy_helper.from_array(RNG.standard_normal(shape).astype(np.float32), name)


def model_of(nodes, inputs, outputs, constants=(), opset=21):
    value = lambda name, shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)  # noqa: E731
    graph = helper.make_graph(
        nodes, "g", [value(n, s) for n, s in inputs.items()], [value(n, s) for n, s in outputs.items()], list(constants)
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def run(model, feeds):
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)


def branching_model():
    """fc1, then an If on the sign of its sum: one branch reads fc1's output and a weight from outside."""

    def branch(op):
        out = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
        nodes = [helper.make_node("MatMul", ["h", "w2"], ["product"]), helper.make_node(op, ["product"], ["out"])]
        return helper.make_graph(nodes, op, [], [out])

    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"], "fc1"),
        helper.make_node("ReduceSum", ["h"], ["total"], "total", keepdims=0),
        helper.make_node("Greater", ["total", "zero"], ["positive"], "compare"),
        helper.make_node("If", ["positive"], ["z"], "choose", then_branch=branch("Relu"), else_branch=branch("Neg")),
        helper.make_node("MatMul", ["z", "w3"], ["y"], "fc3"),
    ]
    zero = numpy_helper.from_array(np.float32(0), "zero")
    return model_of(
        nodes, {"x": ["n", 6]}, {"y": ["n", 2]}, [tensor("w1", 6, 5), tensor("w2", 5, 4), tensor("w3", 4, 2), zero]
    )


def test_operations_of_bodies_stay_in_float_and_the_report_says_so():
    model = branching_model()
    data = RNG.standard_normal((16, 6)).astype(np.float32)
    sim = isobit.quantize(model, data)
    assert any("choose" in note and "float" in note for note in sim.graph.notes)
    assert "choose" in str(sim.report)
    assert Weight("w1") in sim.encodings
    assert Weight("w2") in sim.encodings
    expected = run(model, {"x": data})[0]
    np.testing.assert_allclose(sim.run_float(data)["y"], expected, atol=1e-4)
    error = np.abs(sim.run(data)["y"] - expected).max()
    assert 0 < error < 0.1 * np.abs(expected).max()


def test_what_a_body_reads_is_not_fused_away():
    """The output of fc1 has a reader inside the If, so Relu behind it is not its only reader."""
    model = branching_model()
    model.graph.node.insert(1, helper.make_node("Relu", ["h"], ["unused_relu"], "relu"))
    model.graph.output.append(helper.make_tensor_value_info("unused_relu", TensorProto.FLOAT, ["n", 5]))
    graph = OnnxBackend().open(model).graph
    assert graph.sole_reader("fc1") is None


def test_a_loop_runs_and_edits_around_it_work():
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["cond_in"], ["cond_out"]),
            helper.make_node("Add", ["state", "bias"], ["state_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("cond_in", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("cond_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state_out", TensorProto.FLOAT, None),
        ],
    )
    nodes = [
        helper.make_node("Gemm", ["x", "w", "bias"], ["h"], "fc"),
        helper.make_node("Loop", ["times", "true", "h"], ["looped"], "loop", body=body),
        helper.make_node("Relu", ["looped"], ["y"], "relu"),
    ]
    constants = [
        tensor("w", 6, 5), tensor("bias", 5),
        numpy_helper.from_array(np.array(3, np.int64), "times"), numpy_helper.from_array(np.array(True), "true"),
    ]  # fmt: skip
    model = model_of(nodes, {"x": ["n", 6]}, {"y": ["n", 5]}, constants)
    data = RNG.standard_normal((8, 6)).astype(np.float32)
    sim = isobit.quantize(model, data)
    expected = run(model, {"x": data})[0]
    np.testing.assert_allclose(sim.run_float(data)["y"], expected, atol=1e-5)
    np.testing.assert_allclose(sim.run(data)["y"], expected, atol=0.1)


def tied_model():
    """An embedding table that is also the output projection, transposed."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"], "embed", axis=0),
        helper.make_node("Transpose", ["table"], ["table_t"], "turn", perm=[1, 0]),
        helper.make_node("MatMul", ["e", "table_t"], ["y"], "project"),
    ]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3, 20])
    graph = helper.make_graph(nodes, "tied", [ids], [y], [tensor("table", 20, 8)])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def test_a_tied_table_is_one_weight_with_two_uses():
    opened = OnnxBackend().open(tied_model())
    uses = opened.graph.uses("table")
    assert [(use.node.op, use.role) for use in uses] == [("Gather", "weight"), ("Linear", "weight")]
    assert list(opened.graph.weights) == ["table"]


def test_a_tied_table_can_have_two_formats():
    """One reader's own format (an Input site) leaves the other reader's as it is; the reference is done in NumPy."""
    opened = OnnxBackend().open(tied_model())
    table = opened.weight("table")
    per_tensor = Encoding(QuantSpec.parse("int8 per-tensor"), np.float32(0.05), np.int32(0))
    per_row = Encoding(QuantSpec.parse("int4 per-channel"), np.full(20, 0.4, np.float32), np.zeros(20, np.int32), 0)
    ids = RNG.integers(0, 20, (4, 3))
    opened.set_quantizers({Input("embed", 0): per_tensor, Input("project", 1): per_row})
    expected = per_tensor.fake_quantize(table)[ids] @ per_row.fake_quantize(table).T
    np.testing.assert_allclose(opened.run({"ids": ids})["y"], expected, rtol=1e-5, atol=1e-6)
    opened.set_quantizers({Input("embed", 0): None})
    np.testing.assert_allclose(
        opened.run({"ids": ids})["y"], table[ids] @ per_row.fake_quantize(table).T, rtol=1e-5, atol=1e-6
    )


def test_one_reader_of_a_tensor_can_have_its_own_format():
    nodes = [
        helper.make_node("Neg", ["x"], ["a"], "first"),
        helper.make_node("Abs", ["x"], ["b"], "second"),
        helper.make_node("Add", ["a", "b"], ["y"], "add"),
    ]
    opened = OnnxBackend().open(model_of(nodes, {"x": ["n", 4]}, {"y": ["n", 4]}))
    coarse = Encoding(QuantSpec.parse("int4"), np.float32(0.5), np.int32(0))
    fine = Encoding(QuantSpec.parse("int8"), np.float32(0.01), np.int32(0))
    x = RNG.standard_normal((5, 4)).astype(np.float32)
    opened.set_quantizers({Tensor("x"): coarse, Input("second", 0): fine})
    expected = -coarse.fake_quantize(x) + np.abs(fine.fake_quantize(x))
    np.testing.assert_array_equal(opened.run({"x": x})["y"], expected)


@pytest.fixture
def small_limit(monkeypatch):
    """Treat every model as too large for one protobuf."""
    monkeypatch.setattr(session, "PROTOBUF_LIMIT", 100)
    monkeypatch.setattr(save_model, "PROTOBUF_LIMIT", 100)


def test_models_beyond_the_protobuf_limit_go_through_files(tmp_path, small_limit):
    model = model_of(
        [helper.make_node("Gemm", ["x", "w", "b"], ["h"], "fc"), helper.make_node("Relu", ["h"], ["y"], "relu")],
        {"x": ["n", 64]}, {"y": ["n", 32]}, [tensor("w", 64, 32), tensor("b", 32)],
    )  # fmt: skip
    path = tmp_path / "large.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="large.bin", size_threshold=0)
    data = RNG.standard_normal((16, 64)).astype(np.float32)
    sim = isobit.quantize(str(path), data)
    written = sim.export(tmp_path / "out")
    assert (tmp_path / "out" / "model.qdq.onnx.data").exists()
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")  # the integer kernels of an AVX2 CPU saturate
    exported_output = onnxruntime.InferenceSession(str(written["model"]), options).run(None, {"x": data})[0]
    np.testing.assert_allclose(exported_output, sim.run(data)["y"], atol=1e-4)
    copied = OnnxBackend().restore(sim.backend_model.state())
    np.testing.assert_array_equal(copied.run({"x": data})["y"], sim.run(data)["y"])


@pytest.mark.slow
def test_a_model_over_two_gigabytes(tmp_path):
    """2.2 GB of float weights in external data: opened, calibrated, run, exported."""
    rows, columns = 550_000, 1000
    weight = np.zeros((rows, columns), np.float32)
    weight[:100] = RNG.standard_normal((100, columns))
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"], "embed"),
        helper.make_node("Relu", ["e"], ["y"], "relu"),
    ]
    proto = numpy_helper.from_array(np.zeros((1, 1), np.float32), "table")
    proto.dims[:] = [rows, columns]
    proto.ClearField("raw_data")
    proto.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "table.bin"), ("offset", "0"), ("length", str(weight.nbytes))):
        entry = proto.external_data.add()
        entry.key, entry.value = key, value
    weight.tofile(tmp_path / "table.bin")
    expected = np.maximum(weight[:8], 0)
    del weight
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", columns])
    graph = helper.make_graph(nodes, "large", [ids], [y], [proto])
    path = tmp_path / "large.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    sim = isobit.quantize(str(path), [{"ids": np.arange(8)}], method="minmax")
    np.testing.assert_allclose(sim.run({"ids": np.arange(8)})["y"], expected, atol=0.05)
    sim.export(tmp_path / "out")
    size = sum(file.stat().st_size for file in (tmp_path / "out").iterdir())
    assert 0.5e9 < size < 0.7e9
