"""Whole runs over operations beyond the reference networks: quantize, simulate, export, execute."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import isobit
from isobit.graph import Tensor, Weight

RNG = np.random.default_rng(0)
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def constant(name, *shape):
    return numpy_helper.from_array(RNG.standard_normal(shape).astype(np.float32), name)


def number(name, value, dtype=np.float32):
    return numpy_helper.from_array(np.asarray(value, dtype), name)


def model_of(nodes, inputs, outputs, constants):
    def infos(items):
        return [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in items]

    graph = helper.make_graph(nodes, "g", infos(inputs), infos(outputs), constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def decibels(signal, other):
    noise = float(np.square(signal - other).sum())
    return 10 * np.log10(float(np.square(signal).sum()) / max(noise, 1e-30))


def check(model, batches, folder, *, at_least=20.0, **settings):
    """Float runs equal onnxruntime's, simulated ones are close, and the exported file is the simulator."""
    sim = isobit.quantize(model, batches, **{"method": "minmax", **settings})
    original = onnxruntime.InferenceSession(model.SerializeToString())
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    exported = onnxruntime.InferenceSession(str(sim.export(folder)["model"]), options)
    for batch in batches:
        plain, simulated = sim.run_float(batch), sim.run(batch)
        for index, name in enumerate(plain):
            np.testing.assert_allclose(plain[name], original.run(None, batch)[index], atol=1e-4, rtol=1e-4)
            assert decibels(plain[name], simulated[name]) > at_least, name
            np.testing.assert_allclose(exported.run(None, batch)[index], simulated[name], atol=1e-5)
    return sim


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_lstm(tmp_path, direction):
    count = 2 if direction == "bidirectional" else 1
    node = helper.make_node("LSTM", ["x", "W", "R", "B"], ["y", "yh"], "lstm", hidden_size=4, direction=direction)
    constants = [constant("W", count, 16, 3), constant("R", count, 16, 4), constant("B", count, 32)]
    outputs = [("y", FLOAT, ["s", count, "n", 4]), ("yh", FLOAT, [count, "n", 4])]
    model = model_of([node], [("x", FLOAT, ["s", "n", 3])], outputs, constants)
    sim = check(model, [{"x": normal(5, 2, 3)} for _ in range(3)], tmp_path)
    ends = (".forward", ".reverse") if direction == "bidirectional" else ("",)
    quantized = {str(site) for site in sim.encodings}
    assert {f"{name}{end}" for name in "WR" for end in ends} <= quantized
    assert {node.op for node in sim.graph.nodes} <= {"LSTM", "Concat"}
    assert all(sim.encodings[Weight(f"{name}{end}")].scale.shape == (16,) for name in "WR" for end in ends)


def test_gru(tmp_path):
    node = helper.make_node("GRU", ["x", "W", "R"], ["y"], "gru", hidden_size=4)
    constants = [constant("W", 1, 12, 3), constant("R", 1, 12, 4)]
    model = model_of([node], [("x", FLOAT, [5, "n", 3])], [("y", FLOAT, [5, 1, "n", 4])], constants)
    check(model, [{"x": normal(5, 2, 3)} for _ in range(3)], tmp_path)


def test_one_and_three_dimensional_convolutions(tmp_path):
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["a"], "conv", kernel_shape=[3], pads=[1, 1], group=2),
        helper.make_node("PRelu", ["a", "s"], ["y"], "prelu"),
    ]
    constants = [constant("w", 6, 2, 3), constant("b", 6), constant("s", 6, 1)]
    model = model_of(nodes, [("x", FLOAT, ["n", 4, 9])], [("y", FLOAT, ["n", 6, 9])], constants)
    check(model, [{"x": normal(2, 4, 9)} for _ in range(3)], tmp_path / "1d")
    node = helper.make_node("Conv", ["x", "w"], ["y"], "conv", auto_pad="SAME_UPPER", strides=[2, 2, 2])
    shapes = [("x", FLOAT, ["n", 3, 7, 7, 7])], [("y", FLOAT, ["n", 6, 4, 4, 4])]
    model = model_of([node], *shapes, [constant("w", 6, 3, 3, 3, 3)])
    sim = check(model, [{"x": normal(2, 3, 7, 7, 7)} for _ in range(3)], tmp_path / "3d")
    assert sim.graph.node("conv").attributes["pads"] == (1, 1, 1, 1, 1, 1)


def test_dynamic_image_sizes(tmp_path):
    """Sampling positions follow from each sample's size, so every size has a session of its own."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["r"], "relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["y"], "pool"),
    ]
    shapes = [("x", FLOAT, ["n", 3, "h", "w"])], [("y", FLOAT, ["n", 6, 1, 1])]
    model = model_of(nodes, *shapes, [constant("w", 6, 3, 3, 3)])
    sim = check(model, [{"x": normal(2, 3, size, size)} for size in (32, 80, 120)], tmp_path)
    assert sim.statistics.histogram(Tensor("relu")).elements == 2 * 6 * (32**2 + 80**2 + 120**2)


def attention_with_mask():
    """Embedding, one projection for Q, K and V, an additive mask of -3.4e38 made from an integer input."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"], "embed"),
        helper.make_node("Cast", ["mask"], ["m"], "cast", to=FLOAT),
        helper.make_node("Sub", ["one", "m"], ["inverse"], "invert"),
        helper.make_node("Mul", ["inverse", "lowest"], ["bias"], "bias"),
        helper.make_node("Unsqueeze", ["bias", "axis"], ["bias3"], "unsqueeze"),
        helper.make_node("MatMul", ["e", "w"], ["q"], "project"),
        helper.make_node("Transpose", ["q"], ["qt"], "turn", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "qt"], ["scores"], "scores"),
        helper.make_node("Div", ["scores", "root"], ["scaled"], "scaled"),
        helper.make_node("Add", ["scaled", "bias3"], ["masked"], "masked"),
        helper.make_node("Softmax", ["masked"], ["p"], "softmax", axis=-1),
        helper.make_node("MatMul", ["p", "q"], ["y"], "mix"),
    ]
    constants = [
        constant("table", 20, 8),
        number("w", RNG.standard_normal((8, 8)) * 0.3),
        number("one", 1),
        number("lowest", -3.4e38),
        number("root", np.sqrt(8)),
        number("axis", [1], np.int64),
    ]
    inputs = [("ids", INT64, ["n", "s"]), ("mask", INT64, ["n", "s"])]
    return model_of(nodes, inputs, [("y", FLOAT, ["n", "s", 8])], constants)


@pytest.mark.parametrize("target", ["default", "onnxruntime-cpu", "onnxruntime-cpu-transformer"])
def test_attention_masks_stay_in_float(tmp_path, target):
    masks = np.array([[1] * 6, [1, 1, 1, 1, 0, 0]])
    batches = [{"ids": RNG.integers(0, 20, (2, 6)), "mask": masks} for _ in range(3)]
    sim = check(attention_with_mask(), batches, tmp_path, target=target)
    assert "mask" in sim.report.left_in_float["masked"]
    assert not {"cast", "invert", "bias", "unsqueeze", "masked"} & {str(site) for site in sim.encodings}
    product = sim.graph.node("scaled")
    assert product.op == "MatMul"
    assert product.attributes["scale"] == pytest.approx(8**-0.5)
    assert "scores" not in sim.graph.tensors


def test_a_mask_that_comes_with_a_learned_bias_stays_in_float(tmp_path):
    """As in T5: the mask is added to a bias from a table, and their sum to the scores."""
    nodes = [
        helper.make_node("Cast", ["mask"], ["m"], "cast", to=FLOAT),
        helper.make_node("Mul", ["m", "lowest"], ["penalty"], "penalty"),
        helper.make_node("Gather", ["table", "places"], ["bias"], "bias"),
        helper.make_node("Add", ["bias", "penalty"], ["both"], "both"),
        helper.make_node("Transpose", ["x"], ["xt"], "turn", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["x", "xt"], ["scores"], "scores"),
        helper.make_node("Add", ["scores", "both"], ["sum"], "sum"),
        helper.make_node("Softmax", ["sum"], ["y"], "softmax", axis=-1),
    ]
    constants = [constant("table", 9, 6), number("lowest", -3.4e38)]
    inputs = [("x", FLOAT, ["n", 6, 4]), ("mask", INT64, ["n", 6, 6]), ("places", INT64, ["n", 6])]
    model = model_of(nodes, inputs, [("y", FLOAT, ["n", 6, 6])], constants)
    masks = np.tile(np.array([0, 0, 0, 0, 1, 1]), (2, 6, 1))
    feeds = {"x": normal(2, 6, 4), "mask": masks, "places": RNG.integers(0, 9, (2, 6))}
    sim = check(model, [feeds], tmp_path)
    assert not {"both", "sum"} & {str(site) for site in sim.encodings}


def test_pixels_are_signal(tmp_path):
    """A camera model takes uint8 and casts: what follows is quantized, the integers themselves are not."""
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], "cast", to=FLOAT),
        helper.make_node("Mul", ["f", "scale"], ["s"], "normalize"),
        helper.make_node("Conv", ["s", "w"], ["y"], "conv"),
    ]
    inputs, outputs = [("x", TensorProto.UINT8, ["n", 3, 8, 8])], [("y", FLOAT, ["n", 4, 6, 6])]
    model = model_of(nodes, inputs, outputs, [number("scale", 1 / 255), constant("w", 4, 3, 3, 3)])
    sim = check(model, [{"x": RNG.integers(0, 256, (2, 3, 8, 8), np.uint8)} for _ in range(3)], tmp_path)
    assert {"normalize", "conv", "w"} <= {str(site) for site in sim.encodings}


def test_a_fixed_batch_cuts_the_data(tmp_path):
    node = helper.make_node("Gemm", ["x", "w"], ["y"], "fc")
    model = model_of([node], [("x", FLOAT, [2, 4])], [("y", FLOAT, [2, 6])], [constant("w", 4, 6)])
    sim = isobit.quantize(model, normal(7, 4), method="minmax")
    assert sim.run(normal(2, 4))["y"].shape == (2, 6)
    assert "fixed batch of 2" in str(sim.report)


@pytest.mark.parametrize(
    ("weights", "activations", "at_least"),
    [
        ("int4", "uint8", 12),
        ("int4 block=4", "int16", 15),
        ("int4 lpbq=4", "uint16", 15),
        ("float8e4m3", "float8e4m3", 15),
        ("float16", "float16", 50),
        ("int3", "uint5", 6),
        ("uint8 asymmetric per-tensor", "int8 strict", 25),
        ("int8", "uint8", 30),
        ("int12", "int12", 50),
    ],
)
def test_formats(tmp_path, weights, activations, at_least):
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], "fc1"),
        helper.make_node("Relu", ["h"], ["r"], "relu"),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["y"], "fc2"),
    ]
    constants = [constant("w1", 8, 16), constant("b1", 16), constant("w2", 16, 6), constant("b2", 6)]
    model = model_of(nodes, [("x", FLOAT, ["n", 8])], [("y", FLOAT, ["n", 6])], constants)
    batches = [{"x": normal(16, 8)} for _ in range(3)]
    check(model, batches, tmp_path, weights=weights, activations=activations, at_least=at_least)
