"""`isobit plan`: what quantizing would bring, without data."""

from __future__ import annotations

import json

import numpy as np
import onnx
from onnx import TensorProto, helper
from PIL import Image


def test_what_quantizing_would_bring(isobit, digits, tmp_path):
    result = isobit("plan", digits / "model.onnx", "--exclude", "Linear")
    assert result.exit_code == 0, result.output
    for text in (
        "target       onnxruntime-cpu",
        "conversions  1 to integers, 1 to float",
        "MB quantized",
        "in float: 2",
    ):
        assert text in result.stdout
    assert "node_linear (Linear): excluded by you" in result.stdout
    found = json.loads(isobit("plan", digits / "model.onnx", "--json", "--report", tmp_path / "r.html").stdout)
    assert "node_linear" in (tmp_path / "r.html").read_text("utf-8")
    assert found["coverage"]["integer_weight_bytes"] == found["coverage"]["weight_bytes"]
    assert 0.25 < found["bytes_after"] / found["bytes_before"] < 0.28, "biases have 32 bits"
    without, vnni = found["times"]
    assert "no VNNI" in without["processor"]
    assert "AVX-512 VNNI" in vnni["processor"]
    assert 0.2 < vnni["ratio"] < without["ratio"] < 0.9
    assert len(found["nodes"]) == 48


def test_what_is_wrong_is_said(isobit, digits, tmp_path):
    missing = isobit("plan", tmp_path / "none.onnx")
    assert (missing.exit_code, "no such file" in missing.stderr) == (1, True)
    refused = isobit("plan", digits / "model.onnx", "--target", "onnxruntime-cpu", "--weights", "int3")
    assert (refused.exit_code, "cannot run weights of type int3" in refused.stderr) == (1, True)


def _saved(path, nodes, inputs, output, constants):
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in [*inputs.items(), output]
    ]
    weights = [onnx.numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in constants.items()]
    flags = [helper.make_tensor_value_info("flag", TensorProto.BOOL, [])] * any(n.op_type == "If" for n in nodes)
    graph = helper.make_graph(nodes, "g", [*values[:-1], *flags], values[-1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_an_example_fills_a_fixed_batch(isobit, tmp_path):
    """Files of a sample each are what such a model does not take; of a file of several it takes as many as it needs."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    model = _saved(tmp_path / "m.onnx", nodes, {"x": [2, 8]}, ("y", [2, 4]), {"w": [8, 4]})
    np.savez(tmp_path / "x.npz", x=np.ones((5, 8), np.float32))
    told = isobit("plan", model, "--example", tmp_path / "x.npz")
    assert told.exit_code == 0, told.output
    assert "measured here, a given sample at a time" in told.stdout


def test_the_branch_of_an_example_is_timed_on_it(isobit, tmp_path):
    """Made-up values take another branch of the If than the example, for which the opened model is not made."""
    branches = {
        f"{kind}_branch": helper.make_graph(
            [helper.make_node("MatMul", ["x", weight], [f"of_{kind}"])],
            kind,
            [],
            [helper.make_tensor_value_info(f"of_{kind}", TensorProto.FLOAT, ["n", 8])],
        )
        for kind, weight in (("then", "w"), ("else", "v"))
    }
    nodes = [helper.make_node("If", ["flag"], ["y"], **branches)]
    model = _saved(tmp_path / "m.onnx", nodes, {"x": ["n", 8]}, ("y", ["n", 8]), {"w": [8, 8], "v": [8, 8]})
    np.savez(tmp_path / "x.npz", x=np.ones((3, 8), np.float32), flag=np.array(True))
    told = isobit("plan", model, "--example", tmp_path / "x.npz")
    assert told.exit_code == 0, told.output
    assert "measured here, a given sample at a time" in told.stdout


def test_an_image_has_the_size_that_was_said(isobit, tmp_path):
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"])]
    sizes = {"x": ["n", 3, "h", "v"]}
    model = _saved(tmp_path / "m.onnx", nodes, sizes, ("y", ["n", 4, "a", "b"]), {"w": [4, 3, 3, 3]})
    Image.fromarray(np.full((20, 30, 3), 9, np.uint8)).save(tmp_path / "a.png")
    asked = isobit("plan", model, "--example", tmp_path / "a.png")
    assert (asked.exit_code, "say --image-size" in asked.stderr) == (1, True)
    found = json.loads(isobit("plan", model, "--example", tmp_path / "a.png", "--image-size", "20x30", "--json").stdout)
    assert found["nodes"][0]["multiply_adds"] == 4 * 18 * 28 * 27
