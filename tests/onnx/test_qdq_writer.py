"""What the QDQ writer makes of formats, layouts and outputs, as onnxruntime with all its optimisations loads it."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import isobit
from isobit.encodings import Encoding, QuantSpec, encode_weight
from isobit.graph import Tensor, Weight
from isobit.testing import interpreter
from isobit.testing.networks import NETWORKS
from isobit_onnx.backend import OnnxBackend
from isobit_onnx.reference_networks import build_onnx

RNG = np.random.default_rng(11)


@pytest.mark.parametrize("op", ["Relu", "Clip"])
@pytest.mark.parametrize(
    "text", ["int2", "uint3", "int4", "uint4", "int8", "uint8", "int12", "uint16", "float8e4m3", "float16"]
)
def test_every_activation_format_loads_behind_relu_and_clip(op, text):
    """onnxruntime fuses Relu and Clip into the QuantizeLinear behind them, which fails to load for 4-bit types."""
    bounds = [numpy_helper.from_array(np.float32(v), n) for v, n in ((0, "lo"), (6, "hi"))]
    names = ["x", "lo", "hi"] if op == "Clip" else ["x"]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 4]) for n in ("x", "y"))
    nodes = [helper.make_node(op, names, ["h"], "act"), helper.make_node("Neg", ["h"], ["y"], "negate")]
    graph = helper.make_graph(nodes, "g", [x], [y], bounds if op == "Clip" else [])
    model = OnnxBackend().open(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))
    spec = QuantSpec.parse(text)
    encoding = Encoding(spec, np.float32(1 if text == "float16" else 0.3), np.int32(0))
    model.set_quantizers({Tensor("act"): encoding})
    data = (RNG.standard_normal((64, 4)) * 4).astype(np.float32)
    expected = -encoding.fake_quantize(np.clip(data, 0, 6 if op == "Clip" else None))
    np.testing.assert_array_equal(model.run({"x": data})["y"], expected)
    plain = onnxruntime.InferenceSession(model.native.SerializeToString()).run(None, {"x": data})[0]
    np.testing.assert_array_equal(plain, expected)


@pytest.mark.parametrize("group", [1, 2])
def test_transposed_convolution_per_channel(group):
    """Output channels of a grouped ConvTranspose are no axis of ONNX's weight: blocks carry their scales."""
    network = NETWORKS["upsampler"]()
    model = OnnxBackend().open(build_onnx(network))
    name = {1: "up1.weight", 2: "up2.weight"}[group]
    encoding = encode_weight(model.weight(name), QuantSpec.parse("int4 per-channel"))
    model.set_quantizers({Weight(name): encoding})
    batch = network.batch(2)
    expected = interpreter.outputs(model.graph, model.weight, batch, {Weight(name): encoding})
    np.testing.assert_allclose(model.run(batch)["image_out"], expected["image_out"], atol=1e-5)


def test_the_exported_file_is_plain_onnx(tmp_path):
    """Standard operators only, checked by onnx, integer weights stored as integers, output names kept."""
    network = NETWORKS["inverted_residual"]()
    data = [network.batch(4, seed=s) for s in range(3)]
    sim = isobit.quantize(build_onnx(network), data, target="onnxruntime-cpu")
    written = onnx.load(sim.export(tmp_path)["model"])
    onnx.checker.check_model(written, full_check=True)
    assert {node.domain for node in written.graph.node} == {""}
    assert [o.name for o in written.graph.output] == ["logits"]
    kinds = {c.data_type for c in written.graph.initializer if c.name.endswith("weight_quantized")}
    assert kinds == {TensorProto.INT8}
    assert not any(c.name.endswith(".weight") for c in written.graph.initializer)


def test_integer_kernels_run(tmp_path):
    """onnxruntime fuses the exported digits-like network into integer convolutions."""
    network = NETWORKS["inverted_residual"]()
    data = [network.batch(4, seed=s) for s in range(3)]
    path = isobit.quantize(build_onnx(network), data, target="onnxruntime-cpu").export(tmp_path)["model"]
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    ops = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert ops.count("QLinearConv") == 4
    assert "Conv" not in ops
    assert "QLinearAdd" in ops


def test_completeness_every_tensor_the_target_quantizes_has_a_pair(tmp_path):
    """No runtime has to invent an encoding: each planned activation is read through a DequantizeLinear."""
    network = NETWORKS["attention"]()
    sim = isobit.quantize(build_onnx(network), [network.batch(4, seed=s) for s in range(3)])
    written = onnx.load(sim.export(tmp_path)["model"])
    quantized = {node.input[0] for node in written.graph.node if node.op_type == "QuantizeLinear"}
    values = sim.backend_model.inner.translation.values
    for placement in sim.plan.of_kind("activation"):
        name = values[placement.site.name]
        assert name in quantized or f"{name}_unquantized" in quantized, name
