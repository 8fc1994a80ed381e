"""Recurrent layers of files: directions taken apart, weights that exporters put together."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import isobit
from isobit.backend import CheckedModel
from isobit.edits import Unshare
from isobit.encodings import Encoding
from isobit.errors import CoverageWarning, EditError
from isobit.graph import Blocks, to_canonical, to_native
from isobit.testing import interpreter
from isobit_onnx.backend import OnnxBackend
from isobit_onnx.qdq.grids import grid_of

RNG = np.random.default_rng(0)
HIDDEN, FEATURES = 4, 3


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def model_of(nodes, inputs, outputs, constants):
    infos = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in values.items()]
        for values in (inputs, outputs)
    ]
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", *infos, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def opened(model, batch):
    """The backend's model, after checking that it computes what the file does."""
    opened_model = CheckedModel.of(OnnxBackend().open(model, None))
    names = [output.name for output in model.graph.output]
    expected = onnxruntime.InferenceSession(model.SerializeToString()).run(names, batch)
    outputs = opened_model.run(batch)
    for name, value in zip(names, expected, strict=True):
        np.testing.assert_allclose(outputs[name], value, atol=1e-6, err_msg=name)
    return opened_model


@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3)])
def test_two_directions_are_two_layers(op, gates):
    """The interpreter, which knows one direction a node, computes what onnxruntime does with both."""
    rows = gates * HIDDEN
    node = helper.make_node(op, ["x", "w", "r", "b"], ["y"], "layer", hidden_size=HIDDEN, direction="bidirectional")
    constants = {"w": normal(2, rows, FEATURES), "r": normal(2, rows, HIDDEN), "b": normal(2, 2 * rows)}
    shapes, batch = ({"x": [5, "n", FEATURES]}, {"y": [5, 2, "n", HIDDEN]}), {"x": normal(5, 2, FEATURES)}
    model = opened(model_of([node], *shapes, constants), batch)
    assert [(node.name, node.op) for node in model.graph.nodes] == [
        ("layer.forward", op), ("layer.reverse", op), ("layer", "Concat"),
    ]  # fmt: skip
    outputs = interpreter.outputs(model.graph, model.weight, batch)
    np.testing.assert_allclose(outputs["y"], model.run(batch)["y"], atol=1e-5)
    for index, direction in enumerate(("forward", "reverse")):
        layer = model.graph.node(f"layer.{direction}")
        assert layer.attributes["direction"] == direction
        np.testing.assert_array_equal(model.weight(f"w.{direction}"), constants["w"][index])
        np.testing.assert_array_equal(model.weight(layer.inputs[8] or ""), constants["b"][index, rows:])


def test_states_and_activations_of_both_directions():
    activations = ["Sigmoid", "Tanh", "Tanh", "Sigmoid", "Relu", "Tanh"]
    node = helper.make_node(
        "LSTM", ["x", "w", "r", "", "", "h0", "c0"], ["", "h", "c"], "layer",
        hidden_size=HIDDEN, direction="bidirectional", activations=activations,
    )  # fmt: skip
    constants = {"w": normal(2, 16, FEATURES) * 0.3, "r": normal(2, 16, HIDDEN) * 0.3}
    states = {name: [2, "n", HIDDEN] for name in ("h0", "c0")}
    batch = {"x": normal(5, 2, FEATURES), "h0": normal(2, 2, HIDDEN), "c0": normal(2, 2, HIDDEN)}
    shapes = {"x": [5, "n", FEATURES], **states}, {name: [2, "n", HIDDEN] for name in "hc"}
    model = opened(model_of([node], *shapes, constants), batch)
    assert dict(model.graph.outputs) == {"h": "layer:1", "c": "layer:2"}
    layers = [node for node in model.graph.nodes if node.op == "LSTM"]
    assert [node.attributes["activations"] for node in layers] == [tuple(activations[:3]), tuple(activations[3:])]


def assembled(prefix, gates, order, source):
    """The slices of a parameter in another order, as torch.onnx.export writes them."""
    nodes, parts = [], []
    for gate in order:
        part = f"{prefix}.{gate}"
        bounds = [f"n{gate}", f"n{gate + 1}", "n0"]
        nodes.append(helper.make_node("Slice", [source, *bounds], [part], part))
        parts.append(part)
    nodes.append(helper.make_node("Concat", parts, [f"{prefix}.all"], f"{prefix}.all", axis=0))
    return nodes


@pytest.mark.parametrize("large", [False, True])
def test_weights_that_are_put_together_keep_their_names(large):
    """Of any size: large ones are no constants to the folder."""
    hidden = 40 if large else HIDDEN
    order = (0, 3, 1, 2)
    constants = {"w": normal(4 * hidden, FEATURES), "r": normal(4 * hidden, hidden)}
    constants |= {name: normal(4 * hidden) for name in ("b_ih", "b_hh")}
    nodes = [node for name in constants for node in assembled(f"_{name}", 4, order, name)]
    nodes.append(helper.make_node("Concat", ["_b_ih.all", "_b_hh.all"], ["both"], "both", axis=0))
    for source, target in (("_w.all", "W"), ("_r.all", "R"), ("both", "B")):
        nodes.append(helper.make_node("Unsqueeze", [source, "n0"], [target], target))
    nodes.append(helper.make_node("LSTM", ["x", "W", "R", "B"], ["y"], "layer", hidden_size=hidden))
    numbers = {f"n{gate}": np.array([gate * hidden], np.int64) for gate in range(5)}
    shapes = {"x": [5, "n", FEATURES]}, {"y": [5, 1, "n", hidden]}
    model = opened(model_of(nodes, *shapes, {**constants, **numbers}), {"x": normal(5, 2, FEATURES)})
    (layer,) = model.graph.nodes
    assert (*layer.inputs[1:4], layer.inputs[8]) == ("w", "r", "b_ih", "b_hh")
    for name, value in constants.items():
        expected = np.concatenate([value[gate * hidden : (gate + 1) * hidden] for gate in order])
        np.testing.assert_array_equal(model.weight(name), expected)


def test_a_parameter_that_others_read_too_is_copied():
    constants = {"w": normal(16, FEATURES), "r": normal(1, 16, HIDDEN), "n0": np.array([0], np.int64)}
    constants |= {"n1": np.array([8], np.int64), "n2": np.array([16], np.int64)}
    nodes = [
        helper.make_node("Slice", ["w", "n1", "n2", "n0"], ["second"], "second"),
        helper.make_node("Slice", ["w", "n0", "n1", "n0"], ["first"], "first"),
        helper.make_node("Concat", ["second", "first"], ["turned"], "turned", axis=0),
        helper.make_node("Unsqueeze", ["turned", "n0"], ["W"], "W"),
        helper.make_node("LSTM", ["x", "W", "r"], ["y"], "layer", hidden_size=HIDDEN),
        helper.make_node("Gemm", ["z", "w"], ["product"], "product", transB=1),
    ]
    shapes = {"x": [5, "n", FEATURES], "z": ["n", FEATURES]}, {"y": [5, 1, "n", HIDDEN], "product": ["n", 16]}
    batch = {"x": normal(5, 2, FEATURES), "z": normal(2, FEATURES)}
    model = opened(model_of(nodes, *shapes, constants), batch)
    np.testing.assert_array_equal(model.weight("w"), constants["w"])
    joined = model.weight(model.graph.node("layer").inputs[1] or "")
    np.testing.assert_array_equal(joined, np.concatenate([constants["w"][8:], constants["w"][:8]]))


def test_a_shared_weight_of_recurrent_layers_stays_shared():
    """An edit cannot make a recurrent layer anew, and says so before anything changes."""
    constants = {"w": normal(1, 16, FEATURES), "r": normal(1, 16, HIDDEN)}
    nodes = [helper.make_node("LSTM", [x, "w", "r"], [y], f"layer_{y}", hidden_size=HIDDEN) for x, y in ("ac", "bd")]
    shapes = {name: [5, "n", FEATURES] for name in "ab"}, {name: [5, 1, "n", HIDDEN] for name in "cd"}
    batch = {name: normal(5, 2, FEATURES) for name in "ab"}
    model = opened(model_of(nodes, *shapes, constants), batch)
    before = model.run(batch)
    with pytest.raises(EditError, match="LSTM"):
        model.edit([Unshare("w", "layer_d")])
    for name, value in model.run(batch).items():
        np.testing.assert_array_equal(value, before[name])


def test_scales_of_reordered_gates_follow_the_native_rows():
    """A constant that is kept in another order of the gates, (gates * 2, features)."""
    scales = np.arange(1, 9, dtype=np.float32)
    encoding = Encoding.of("int8 per-channel", scales, axis=0)
    native = np.arange(24, dtype=np.float32).reshape(8, 3)
    layout = (Blocks((0, 3, 1, 2)),)
    grid = grid_of(encoding, native.shape, layout, activation=False)
    assert (grid.axis, grid.block_size) == (0, None)
    expected = to_native(encoding.fake_quantize(to_canonical(native, layout)), layout)
    rows = grid.scale[:, None]
    np.testing.assert_array_equal(np.rint(native / rows) * rows, expected)
    assert grid.scale.tolist() == [1, 2, 5, 6, 7, 8, 3, 4]


@pytest.mark.parametrize("states", ["none", "given", "learned"])
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_layers_with_lengths_and_states_are_quantized(op, gates, direction, states, tmp_path):
    """Lengths are no signal and keep nothing in float; the written file stops where the simulator does."""
    count, directions = (2 if op == "LSTM" else 1), (2 if direction == "bidirectional" else 1)
    names = [f"{states}{index}" if states != "none" else "" for index in range(count)]
    rows, shape = gates * HIDDEN, [directions, 4, HIDDEN]
    nodes = [
        helper.make_node("Cast", ["lengths"], ["whole"], "cast", to=TensorProto.INT32),
        helper.make_node(
            op, ["x", "w", "r", "b", "whole", *names], ["y", "last"], "layer", hidden_size=HIDDEN, direction=direction
        ),
        helper.make_node("MatMul", ["last", "head"], ["z"], "head_layer"),
    ]
    constants = {"w": normal(directions, rows, FEATURES), "r": normal(directions, rows, HIDDEN)}
    constants |= {"b": normal(directions, 2 * rows), "head": normal(HIDDEN, 2)}
    constants |= {name: normal(*shape) for name in names if states == "learned"}
    inputs = {"x": [6, 4, FEATURES], **{name: shape for name in names if states == "given"}}
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes) for name, sizes in inputs.items()]
    infos.append(helper.make_tensor_value_info("lengths", TensorProto.INT64, [4]))
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "z")]
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", infos, results, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    batch = {name: normal(*sizes) for name, sizes in inputs.items()} | {"lengths": np.array([6, 2, 5, 1])}
    sim = isobit.quantize(model, [batch], target="default", method="minmax", progress=False)
    assert sim.report.coverage.compute == 1
    expected = onnxruntime.InferenceSession(model.SerializeToString()).run(["y", "z"], batch)
    for name, value in zip(("y", "z"), expected, strict=True):
        np.testing.assert_allclose(sim.run_float(batch)[name], value, atol=1e-5)
    assert not np.any(sim.run(batch)["y"][2:, :, 1])  # behind the end of a sample
    result = sim.export(tmp_path)
    assert [check.equal for check in result.checks if check.session != "default session"] == [1, 1]


@pytest.mark.parametrize("target", ["onnxruntime-cpu", "onnxruntime-cpu-transformer"])
@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_weights_alone_are_integers_where_the_runtime_has_no_kernel(op, gates, target, tmp_path):
    """The layer reads and computes floats; both weights are kept in 8 bits, and told to the layer a row each."""
    rows = gates * HIDDEN
    constants = {"w": normal(1, rows, FEATURES), "r": normal(1, rows, HIDDEN), "b": normal(1, 2 * rows)}
    node = helper.make_node(op, ["x", "w", "r", "b"], ["y"], "layer", hidden_size=HIDDEN)
    model = model_of([node], {"x": [5, "n", FEATURES]}, {"y": [5, 1, "n", HIDDEN]}, constants)
    batch = {"x": normal(5, 2, FEATURES)}
    sim = isobit.quantize(model, [batch], target=target, method="minmax", progress=False)
    assert {str(site) for site in sim.encodings} == {"w", "r"}
    coverage = sim.report.coverage
    assert coverage.compute == 0
    assert coverage.integer_weight_bytes == 4 * rows * (FEATURES + HIDDEN)
    rounded = {}
    for name in ("w", "r"):  # a scale a row, symmetric, by hand
        highest, lowest = (f(constants[name], axis=2, keepdims=True) for f in (np.max, np.min))
        scale = np.maximum(highest / np.float32(127), -lowest / np.float32(128))
        assert np.unique(sim.encodings[name].scale).size == rows
        rounded[name] = np.clip(np.rint(constants[name] / scale), -128, 127) * scale
    result = sim.export(tmp_path)
    assert all(check.decibels > 100 for check in result.checks)  # packed or not, sums of floats differ in a last bit
    expected = onnxruntime.InferenceSession(
        model_of([node], {"x": [5, 2, FEATURES]}, {"y": [5, 1, 2, HIDDEN]}, constants | rounded).SerializeToString()
    ).run(["y"], batch)[0]
    np.testing.assert_allclose(sim.run(batch)["y"], expected, atol=1e-5)
    with pytest.warns(CoverageWarning, match="nothing was quantized"):
        excluded = isobit.quantize(model, [batch], target=target, exclude=[op], progress=False)
    assert not excluded.encodings
