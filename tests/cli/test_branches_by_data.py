"""Commands that are given data open an `If` as the branch that the data takes, as `isobit.quantize` does."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

RNG = np.random.default_rng(0)


def _branch(name, width):
    """A linear layer with a Relu; its weight lies in the body."""
    nodes = [
        helper.make_node("MatMul", ["x", f"{name}_w"], [f"{name}_h"], f"{name}_layer"),
        helper.make_node("Relu", [f"{name}_h"], [f"{name}_y"], f"{name}_relu"),
        helper.make_node("MatMul", [f"{name}_y", f"{name}_v"], [f"{name}_z"], f"{name}_head"),
    ]
    shapes = {f"{name}_w": (8, width), f"{name}_v": (width, 4)}
    weights = [numpy_helper.from_array(RNG.standard_normal(s).astype(np.float32), n) for n, s in shapes.items()]
    outputs = [helper.make_tensor_value_info(f"{name}_z", TensorProto.FLOAT, ["n", 4])]
    return helper.make_graph(nodes, name, [], outputs, weights)


@pytest.fixture
def model(tmp_path):
    """A network of two halves, of which a rate chooses one."""
    nodes = [
        helper.make_node("Equal", ["rate", "sixteen"], ["is_16k"]),
        helper.make_node(
            "If", ["is_16k"], ["y"], "choose", then_branch=_branch("high", 32), else_branch=_branch("low", 16)
        ),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8]),
        helper.make_tensor_value_info("rate", TensorProto.INT64, []),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])]
    constants = [numpy_helper.from_array(np.int64(16_000), "sixteen")]
    graph = helper.make_graph(nodes, "rates", inputs, outputs, constants)
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, x=RNG.standard_normal((64, 8)).astype(np.float32), rate=np.int64(16_000))
    return path


def _layers(path):
    return sorted(node.name for node in onnx.load(path).graph.node if node.op_type in ("If", "MatMul", "Gemm"))


@pytest.mark.parametrize(
    "command",
    [
        ["quantize"],
        ["calibrate"],
        ["auto", "--evaluations", 2],
        ["compress", "--method", "weight-svd", "--keep", 0.9],
    ],
    ids=lambda command: command[0],
)
def test_the_branch_of_the_data_is_what_is_written(isobit, model, data, tmp_path, command):
    isobit(command[0], model, "--data", data, "-o", tmp_path / "out", *command[1:])
    written = next((tmp_path / "out").glob("model*.onnx"))
    assert not [name for name in _layers(written) if name == "choose" or name.startswith("low")]
    assert any(name.startswith("high_layer") for name in _layers(written))


def test_all_of_its_weights_are_in_integers(isobit, model, data, tmp_path):
    run = isobit("quantize", model, "--data", data, "-o", tmp_path / "out", "--json")
    coverage = json.loads(run.stdout)["coverage"]
    assert coverage["integer_weight_bytes"] == coverage["weight_bytes"]
    found = isobit("analyze", model, "--data", data, "--json")
    assert "high_layer" in found.output
    assert "low_layer" not in found.output


def test_a_dump_has_the_tensors_of_the_branch(isobit, model, data, tmp_path):
    isobit("dump", model, "--data", data, "-o", tmp_path / "values.npz", "--samples", 4)
    with np.load(tmp_path / "values.npz") as values:
        assert any("high_layer" in name or "high_relu" in name for name in values.files), values.files


def test_statistics_of_a_branch_serve_with_an_example(isobit, model, data, tmp_path):
    statistics, out = tmp_path / "statistics.npz", tmp_path / "out"
    isobit("calibrate", model, "--data", data, "--write-statistics", statistics)
    refused = isobit("calibrate", model, "--statistics", statistics, "-o", out)
    assert refused.exit_code
    assert "--example" in refused.output
    isobit("calibrate", model, "--statistics", statistics, "--example", data, "-o", out)
    assert "choose" not in _layers(out / "model.qdq.onnx")
    both = isobit("calibrate", model, "--data", data, "--example", data, "-o", out)
    assert both.exit_code == 2
    assert "--example" in both.output


def test_files_that_take_both_branches_keep_them(isobit, model, tmp_path):
    for index, rate in enumerate((16_000, 8_000, 16_000)):
        x = RNG.standard_normal((16, 8)).astype(np.float32)
        (tmp_path / "batches").mkdir(exist_ok=True)
        np.savez(tmp_path / "batches" / f"{index}.npz", x=x, rate=np.int64(rate))
    run = isobit("quantize", model, "--data", tmp_path / "batches", "-o", tmp_path / "out", "--recipe", "basic")
    assert run.exit_code == 0, run.output
    assert "different branches" in run.output
    assert "choose" in _layers(tmp_path / "out" / "model.qdq.onnx")


def test_a_batch_that_does_not_fit_is_named_with_its_file(isobit, model, tmp_path):
    folder = tmp_path / "batches"
    folder.mkdir()
    for index in range(4):
        x = RNG.standard_normal((16, 7 if index == 2 else 8)).astype(np.float32)
        np.savez(folder / f"{index}.npz", x=x, rate=np.int64(16_000))
    run = isobit("quantize", model, "--data", folder, "-o", tmp_path / "out")
    assert run.exit_code == 1
    assert str(folder / "2.npz") in run.output.replace("\n", "")
