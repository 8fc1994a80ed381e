"""Any valid model from opset 7 up opens, computes what onnxruntime computes of the original, and keeps its names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import isobit
from isobit.errors import ModelError
from isobit_onnx.backend import OnnxBackend
from isobit_onnx.read.read_model import read_model

RNG = np.random.default_rng(7)


def array(name, *shape, scale=1.0):
    return numpy_helper.from_array((RNG.standard_normal(shape) * scale).astype(np.float32), name)


def integers(name, *values):
    return numpy_helper.from_array(np.array(values, np.int64), name)


def floats(name, *values):
    return numpy_helper.from_array(np.array(values, np.float32), name)


def batch_norm(prefix, channels):
    constants = [array(f"{prefix}.{key}", channels) for key in ("scale", "bias", "mean")]
    variance = numpy_helper.from_array(RNG.uniform(0.5, 1.5, channels).astype(np.float32), f"{prefix}.var")
    return [*constants, variance]


def old_style_nodes(opset):
    """A classifier in the spelling of `opset`: attributes that later became inputs, Upsample that became Resize."""
    constants = [array("conv.weight", 8, 3, 3, 3, scale=0.2), array("conv.bias", 8), *batch_norm("bn", 8)]
    constants += [array("fc.weight", 5, 8 * 2 * 2, scale=0.1), array("fc.bias", 5)]
    nodes = [
        helper.make_node(
            "Conv", ["x", "conv.weight", "conv.bias"], ["c"], "conv", pads=[1, 1, 1, 1], kernel_shape=[3, 3]
        ),
        helper.make_node(
            "BatchNormalization", ["c", "bn.scale", "bn.bias", "bn.mean", "bn.var"], ["b"], "bn", epsilon=1e-3
        ),
    ]
    if opset < 11:
        nodes.append(helper.make_node("Clip", ["b"], ["r"], "clip", min=0.0, max=6.0))
        nodes.append(helper.make_node("Pad", ["r"], ["p"], "pad", pads=[0, 0, 0, 0, 0, 0, 0, 0]))
    else:
        constants += [floats("lo", 0.0), floats("hi", 6.0), integers("pads", 0, 0, 0, 0, 0, 0, 0, 0)]
        constants[-3] = numpy_helper.from_array(np.float32(0), "lo")
        constants[-2] = numpy_helper.from_array(np.float32(6), "hi")
        nodes.append(helper.make_node("Clip", ["b", "lo", "hi"], ["r"], "clip"))
        nodes.append(helper.make_node("Pad", ["r", "pads"], ["p"], "pad"))
    nodes.append(helper.make_node("MaxPool", ["p"], ["m"], "pool", kernel_shape=[2, 2], strides=[2, 2]))
    if opset < 9:
        nodes.append(helper.make_node("Upsample", ["m"], ["u"], "up", scales=[1.0, 1.0, 2.0, 2.0], mode="nearest"))
    elif opset == 9:
        constants.append(floats("scales", 1, 1, 2, 2))
        nodes.append(helper.make_node("Upsample", ["m", "scales"], ["u"], "up", mode="nearest"))
    elif opset == 10:
        constants.append(floats("scales", 1, 1, 2, 2))
        nodes.append(helper.make_node("Resize", ["m", "scales"], ["u"], "up", mode="nearest"))
    else:
        constants += [floats("scales", 1, 1, 2, 2), numpy_helper.from_array(np.zeros(0, np.float32), "roi")]
        nodes.append(
            helper.make_node(
                "Resize",
                ["m", "roi", "scales"],
                ["u"],
                "up",
                mode="nearest",
                coordinate_transformation_mode="asymmetric",
                nearest_mode="floor",
            )
        )
    nodes.append(helper.make_node("AveragePool", ["u"], ["a"], "average", kernel_shape=[4, 4], strides=[4, 4]))
    if opset < 12:
        nodes.append(helper.make_node("Dropout", ["a"], ["d"], "drop", ratio=0.3))
    else:
        constants.append(numpy_helper.from_array(np.float32(0.3), "ratio"))
        nodes.append(helper.make_node("Dropout", ["a", "ratio"], ["d"], "drop"))
    if opset < 10:
        nodes.append(helper.make_node("Slice", ["d"], ["s"], "slice", axes=[2], starts=[0], ends=[100]))
    else:
        constants += [integers("starts", 0), integers("ends", 100), integers("axes", 2)]
        nodes.append(helper.make_node("Slice", ["d", "starts", "ends", "axes"], ["s"], "slice"))
    nodes.append(helper.make_node("Flatten", ["s"], ["f"], "flatten"))
    nodes.append(helper.make_node("Gemm", ["f", "fc.weight", "fc.bias"], ["g"], "fc", transB=1))
    nodes.append(helper.make_node("Softmax", ["g"], ["y"], "softmax", axis=1))
    return nodes, constants


def classifier(opset, inputs_hold_weights=False):
    nodes, constants = old_style_nodes(opset)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])
    inputs = [x]
    if inputs_hold_weights:
        inputs += [helper.make_tensor_value_info(c.name, c.data_type, list(c.dims)) for c in constants]
    graph = helper.make_graph(nodes, "classifier", inputs, [y], constants)
    ir_version = {7: 3, 8: 3, 9: 4, 10: 5, 11: 6, 12: 7}.get(opset, 10)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def run_original(model, feeds):
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)


@pytest.mark.parametrize("opset", [7, 8, 9, 10, 11, 12, 13, 14, 15, 17, 18, 19, 20, 21, 22, 23])
def test_every_opset_computes_the_same(opset):
    model = classifier(opset, inputs_hold_weights=opset < 9)
    x = RNG.standard_normal((4, 3, 8, 8)).astype(np.float32)
    expected = run_original(model, {"x": x})[0]
    opened = OnnxBackend().open(model)
    np.testing.assert_allclose(opened.run({"x": x})["y"], expected, atol=1e-5)
    assert opened.graph.inputs == ("x",)
    assert {"conv.weight", "conv.bias", "fc.weight", "bn.mean"} <= opened.graph.weights.keys()
    ops = [node.op for node in opened.graph.nodes]
    assert ops[:3] == ["Conv", "BatchNormalization", "Clip"]
    assert ops[-2:] == ["Linear", "Softmax"]
    assert "Dropout" not in ops


def test_the_caller_model_is_not_changed():
    model = classifier(9)
    before = model.SerializeToString()
    opened = OnnxBackend().open(model)
    opened.set_quantizers({})
    assert model.SerializeToString() == before


def constant_node(name, value):
    return helper.make_node("Constant", [], [name], f"make_{name}", value=numpy_helper.from_array(value, name))


def test_constants_may_be_nodes():
    weight = RNG.standard_normal((4, 6)).astype(np.float32)
    nodes = [
        constant_node("w", weight),
        helper.make_node("Constant", [], ["axes"], "axes", value_ints=[1]),
        helper.make_node("MatMul", ["x", "w"], ["h"], "matmul"),
        helper.make_node("ReduceMax", ["h", "axes"], ["y"], "max", keepdims=1),
    ]
    model = simple_model(nodes, ["n", 4], ["n", 1])
    opened = OnnxBackend().open(model)
    x = RNG.standard_normal((3, 4)).astype(np.float32)
    np.testing.assert_allclose(opened.run({"x": x})["y"], run_original(model, {"x": x})[0], rtol=1e-6)
    np.testing.assert_array_equal(opened.weight("w"), weight.T)
    assert opened.graph.node("max").attributes["axes"] == (1,)


def simple_model(nodes, in_shape, out_shape, constants=(), opset=21, in_type=TensorProto.FLOAT, functions=()):
    x = helper.make_tensor_value_info("x", in_type, in_shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, out_shape)
    graph = helper.make_graph(nodes, "g", [x], [y], list(constants))
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("local", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10, functions=list(functions))


def test_nodes_without_names_and_with_equal_names():
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Neg", ["a"], ["b"], "same")]
    nodes += [helper.make_node("Abs", ["b"], ["c"], "same"), helper.make_node("Neg", ["c"], ["y"], "x")]
    graph = OnnxBackend().open(simple_model(nodes, ["n", 4], ["n", 4])).graph
    names = [node.name for node in graph.nodes]
    assert len(set(names)) == 4
    assert not set(names) & set(graph.inputs)


def test_model_local_functions_are_inlined():
    body = [helper.make_node("Neg", ["a"], ["t"]), helper.make_node("Relu", ["t"], ["b"])]
    function = helper.make_function("local", "NegRelu", ["a"], ["b"], body, [helper.make_opsetid("", 21)])
    call = helper.make_node("NegRelu", ["x"], ["y"], "call", domain="local")
    opened = OnnxBackend().open(simple_model([call], ["n", 4], ["n", 4], functions=[function]))
    assert [node.op for node in opened.graph.nodes] == ["Neg", "Relu"]
    assert opened.run({"x": -np.ones((1, 4), np.float32)})["y"].tolist() == [[1, 1, 1, 1]]


def test_a_transposed_view_keeps_the_weights_name():
    weight = array("w", 6, 4)
    nodes = [
        helper.make_node("Transpose", ["w"], ["wt"], "turn"),
        helper.make_node("MatMul", ["x", "wt"], ["y"], "matmul"),
    ]
    opened = OnnxBackend().open(simple_model(nodes, ["n", 4], ["n", 6], [weight]))
    assert [node.op for node in opened.graph.nodes] == ["Linear"]
    np.testing.assert_array_equal(opened.weight("w"), numpy_helper.to_array(weight))


# --- bad input ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty: download or export it again"),
        (b"hello, this is a text", "not an ONNX model"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "not an ONNX model"),
    ],
)
def test_files_that_are_no_models(tmp_path, content, says):
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=says) as error:
        read_model(path)
    assert "bad.onnx" in str(error.value)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99, 0.999])
def test_truncated_models(tmp_path, share):
    data = classifier(17).SerializeToString()
    path = tmp_path / "cut.onnx"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ModelError, match=r"cut\.onnx"):
        OnnxBackend().open(path)


def test_missing_file_folder_and_old_opset(tmp_path):
    with pytest.raises(ModelError, match="does not exist"):
        read_model(tmp_path / "none.onnx")
    with pytest.raises(ModelError, match="is a folder"):
        read_model(tmp_path)
    old = classifier(7)
    old.opset_import[0].version = 6
    with pytest.raises(ModelError, match="opset 6"):
        read_model(old)


def test_a_quantized_model_is_refused():
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s"], ["y"]),
    ]
    with pytest.raises(ModelError, match="quantized already"):
        read_model(simple_model(nodes, ["n", 4], ["n", 4], [numpy_helper.from_array(np.float32(0.1), "s")]))


def test_missing_and_short_external_data(tmp_path):
    model = classifier(17)
    path = tmp_path / "model.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    OnnxBackend().open(path)
    data = (tmp_path / "weights.bin").read_bytes()
    (tmp_path / "weights.bin").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match=r"weights\.bin.*shorter"):
        read_model(path)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelError, match=r"weights\.bin.*missing"):
        read_model(path)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"PK\x03\x04rest", "zip archive: unpack it"),
        (b"\x1f\x8brest", "gzip"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"\x93NUMPY\x01", "NumPy array"),
        (b"<!DOCTYPE html>", "web page"),
        (b"", "is empty: download or export it again"),
    ],
)
def test_a_file_that_is_something_else_says_what(content: bytes, what: str, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ModelError, match=what):
        read_model(tmp_path / "m.onnx")


def test_an_opset_that_is_too_new_says_both_numbers() -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", 1, [2])],
        [helper.make_tensor_value_info("y", 1, [2])],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 99)])
    with pytest.raises(ModelError, match=r"has opset 99, and onnx .* knows \d+ at most"):
        read_model(proto)


@pytest.mark.parametrize(
    ("name", "value"), [("axes", 1), ("ends", 9), ("axes", [[1]]), ("axes", [7]), ("steps", [1, 1])]
)
def test_a_slice_whose_constants_are_not_lists_of_one_length(name, value):
    constants = {"starts": [0], "ends": [9], "axes": [1], "steps": [1], name: value}
    nodes = [helper.make_node("Slice", ["x", *constants], ["s"], "slice"), helper.make_node("Relu", ["s"], ["y"], "r")]
    ports = [helper.make_tensor_value_info(*port) for port in (("x", TensorProto.FLOAT, [2, 4]), ("y", 1, None))]
    weights = [numpy_helper.from_array(np.asarray(array, np.int64), key) for key, array in constants.items()]
    graph = helper.make_graph(nodes, "sliced", ports[:1], ports[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    x = np.arange(8, dtype=np.float32).reshape(2, 4) - 3
    with pytest.raises(ModelError):  # some are refused when they are loaded, some when they run
        isobit.QuantSim(model).calibrate([x])


def test_models_that_do_not_load_leave_standard_output_alone(tmp_path, capfd):
    """onnxruntime tries such a model twice and prints so, between what is printed for programs."""
    node = helper.make_node("Rexu", ["x"], ["y"], "node")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in "xy")
    model = helper.make_model(
        helper.make_graph([node], "graph", [x], [y]), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString().replace(b"Rexu", b"Re\xffu"))
    with pytest.raises(ModelError):
        isobit.QuantSim(tmp_path / "model.onnx")
    assert capfd.readouterr().out == ""
