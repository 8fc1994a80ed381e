"""Valid models of unusual make: shared views, passed-through inputs, unread outputs, masks in odd places."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import isobit
from isobit.errors import CoverageWarning, FormatError, IsobitError
from isobit.techniques import FoldBatchNorms

RNG = np.random.default_rng(5)
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def node(op, inputs, outputs, **attributes):
    return helper.make_node(op, inputs, outputs, f"n_{outputs[-1]}", **attributes)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def model_of(nodes, inputs, outputs, constants):
    def infos(items):
        return [helper.make_tensor_value_info(name, kind, shape) for name, shape, kind in items]

    inputs = [(*item, FLOAT) if len(item) == 2 else item for item in inputs]
    outputs = [(*item, FLOAT) if len(item) == 2 else item for item in outputs]
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", infos(inputs), infos(outputs), initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def original(model, feeds):
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))


def assert_float_is_original(sim, model, feeds):
    for name, value in original(model, feeds).items():
        np.testing.assert_allclose(sim.run_float(feeds)[name], value, atol=1e-4, rtol=1e-4)


def test_a_weight_read_through_another_view_is_shared():
    """A tied autoencoder: folding the Mul into the second layer would change the first."""
    nodes = [
        node("Gemm", ["x", "w"], ["h"], transB=1),
        node("Relu", ["h"], ["r"]),
        node("Gemm", ["r", "w"], ["y"]),
        node("Mul", ["y", "s"], ["o"]),
    ]
    model = model_of(nodes, [("x", ["n", 3])], [("o", ["n", 3])], {"w": normal(5, 3), "s": normal(3)})
    sim = isobit.QuantSim(model)
    sim.apply(FoldBatchNorms())
    assert_float_is_original(sim, model, {"x": normal(2, 3)})


def test_a_bias_read_through_another_view_gets_a_copy():
    nodes = [
        node("Gemm", ["x", "w", "b"], ["h"], transB=1),
        node("Mul", ["h", "s"], ["m"]),
        node("Mul", ["x2", "b"], ["k"]),
        node("Add", ["m", "k"], ["o"]),
    ]
    constants = {"w": normal(5, 3), "b": normal(1, 5), "s": normal(5)}
    model = model_of(nodes, [("x", ["n", 3]), ("x2", ["n", 5])], [("o", ["n", 5])], constants)
    sim = isobit.QuantSim(model)
    sim.apply(FoldBatchNorms())
    assert_float_is_original(sim, model, {"x": normal(2, 3), "x2": normal(2, 5)})


def test_tied_matmuls_on_three_axes_can_take_a_bias():
    nodes = [
        node("MatMul", ["x", "w"], ["h"]),
        node("Transpose", ["w"], ["wt"], perm=[1, 0]),
        node("MatMul", ["h", "wt"], ["y"]),
        node("Add", ["y", "c"], ["o"]),
    ]
    model = model_of(nodes, [("x", ["n", 2, 3])], [("o", ["n", 2, 3])], {"w": normal(3, 5), "c": normal(1, 1, 3)})
    sim = isobit.QuantSim(model)
    sim.apply(FoldBatchNorms())
    assert_float_is_original(sim, model, {"x": normal(2, 2, 3)})


def test_a_mask_in_a_concatenation_leaves_the_others_alone():
    mask = np.array([0, -1e9, 0, 0, 0, 0], np.float32)
    nodes = [
        node("Conv", ["x", "w"], ["y"]),
        node("Add", ["y", "mask"], ["ym"]),
        node("Concat", ["y", "ym"], ["c"], axis=1),
    ]
    outputs = [("y", ["n", 4, 6, 6]), ("c", ["n", 8, 6, 6])]
    model = model_of(nodes, [("x", ["n", 3, 8, 8])], outputs, {"w": normal(4, 3, 3, 3), "mask": mask})
    x = normal(2, 3, 8, 8)
    sim = isobit.quantize(model, [x])
    expected = original(model, {"x": x})["y"]
    np.testing.assert_allclose(sim.run(x)["y"], expected, atol=0.02 * np.abs(expected).max())


@pytest.mark.parametrize("target", ["default", "onnxruntime-cpu", "onnxruntime-cpu-transformer"])
def test_a_computed_pad_value_is_observed(tmp_path, target):
    nodes = [
        node("ReduceMax", ["x"], ["top"], keepdims=0),
        node("Mul", ["top", "ten"], ["value"]),
        node("Conv", ["x", "w"], ["y"]),
        node("Pad", ["y", "pads", "value"], ["p"]),
        node("Relu", ["p"], ["o"]),
    ]
    constants = {"w": normal(4, 3, 3, 3), "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "ten": np.float32(30)}
    model = model_of(nodes, [("x", ["n", 3, 8, 8])], [("o", ["n", 4, 8, 8])], constants)
    x = normal(2, 3, 8, 8)
    sim = isobit.quantize(model, [x], target=target, method="minmax")
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(str(sim.export(tmp_path)["model"]), options)
    np.testing.assert_allclose(session.run(None, {"x": x})[0], sim.run(x)["o"], atol=1e-4)


def test_the_bias_of_an_excluded_layer_stays_float_though_another_reads_it():
    nodes = [node("Conv", ["x", "w", "b"], ["y"]), node("Add", ["q", "b"], ["o"])]
    inputs, outputs = [("x", ["n", 3, 3, 3]), ("q", ["n", 4])], [("y", ["n", 4, 1, 1]), ("o", ["n", 4])]
    model = model_of(nodes, inputs, outputs, {"w": normal(4, 3, 3, 3), "b": 50 * normal(4)})
    feeds = {"x": normal(2, 3, 3, 3), "q": normal(2, 4)}
    sim = isobit.quantize(model, [feeds], target="default", exclude="Conv", method="minmax")
    np.testing.assert_allclose(sim.run(feeds)["y"], original(model, feeds)["y"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("first", ["", "unread"])
def test_an_lstm_whose_sequence_nobody_reads(first):
    lstm = helper.make_node("LSTM", ["x", "w", "r"], [first, "h"], "lstm", hidden_size=4)
    constants = {"w": normal(1, 16, 3), "r": normal(1, 16, 4)}
    model = model_of([lstm], [("x", [5, "n", 3])], [("h", [1, "n", 4])], constants)
    x = normal(5, 2, 3)
    sim = isobit.quantize(model, [{"x": x}])
    np.testing.assert_allclose(sim.run({"x": x})["h"], original(model, {"x": x})["h"], atol=0.1)


def test_an_input_that_is_an_output():
    model = model_of([node("Relu", ["x"], ["o"])], [("x", ["n", 3])], [("o", ["n", 3]), ("x", ["n", 3])], {})
    x = normal(4, 3)
    sim = isobit.quantize(model, [x], target="default", method="minmax")
    outputs = sim.run(x)
    np.testing.assert_array_equal(outputs["x"], x)
    np.testing.assert_allclose(outputs["o"], np.maximum(x, 0), atol=0.05)


def test_same_padding_of_a_transposed_convolution_survives_folding():
    batch_norm = {name: np.abs(normal(2)) + 0.5 for name in ("g", "b", "m", "v")}
    nodes = [
        node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2], auto_pad="SAME_UPPER"),
        node("BatchNormalization", ["y", "g", "b", "m", "v"], ["o"]),
    ]
    model = model_of(
        nodes, [("x", ["n", 3, 8, 8])], [("o", ["n", 2, "h", "w"])], {"w": normal(3, 2, 3, 3), **batch_norm}
    )
    sim = isobit.QuantSim(model)
    sim.apply(FoldBatchNorms())
    assert_float_is_original(sim, model, {"x": normal(2, 3, 8, 8)})


def test_inputs_without_the_batch_on_axis_0():
    model = model_of(
        [node("Add", ["x", "pos"], ["o"])], [("x", ["n", 3, 4]), ("pos", [3, 4])], [("o", ["n", 3, 4])], {}
    )
    x, pos = normal(7, 3, 4), normal(3, 4)
    sim = isobit.quantize(model, {"x": x, "pos": pos}, batch_size=2, target="default", method="minmax")
    np.testing.assert_allclose(sim.run({"x": x, "pos": pos})["o"], x + pos, atol=0.1)
    lstm = helper.make_node("LSTM", ["x", "w", "r", "", "", "h0", "c0"], ["y"], "lstm", hidden_size=4)
    constants = {"w": normal(1, 16, 3), "r": normal(1, 16, 4)}
    inputs = [("x", [5, "n", 3]), ("h0", [1, "n", 4]), ("c0", [1, "n", 4])]
    model = model_of([lstm], inputs, [("y", [5, 1, "n", 4])], constants)
    feeds = {"x": normal(5, 2, 3), "h0": normal(1, 2, 4), "c0": normal(1, 2, 4)}
    sim = isobit.quantize(model, feeds, target="default", method="minmax")
    np.testing.assert_allclose(sim.run(feeds)["y"], original(model, feeds)["y"], atol=0.1)


def test_a_stored_causal_mask_may_hold_infinity():
    mask = np.triu(np.full((1, 16, 16), -np.inf, np.float32), 1)
    nodes = [
        node("Slice", ["mask", "start", "end", "axis"], ["part"]),
        node("Add", ["x", "part"], ["s"]),
        node("Softmax", ["s"], ["o"]),
    ]
    inputs = [("x", ["n", 5, 16]), ("end", [1], INT64)]
    model = model_of(
        nodes, inputs, [("o", ["n", 5, 16])], {"mask": mask, "start": np.array([0]), "axis": np.array([1])}
    )
    feeds = {"x": normal(2, 5, 16), "end": np.array([5])}
    sim = isobit.quantize(model, [feeds], target="default", method="minmax")
    np.testing.assert_allclose(sim.run(feeds)["o"], original(model, feeds)["o"], atol=0.02)
    direct = model_of([node("Add", ["x", "mask"], ["s"]), node("Softmax", ["s"], ["o"])], [("x", ["n", 16, 16])],
                      [("o", ["n", 16, 16])], {"mask": mask})  # fmt: skip
    x = normal(2, 16, 16)
    sim = isobit.quantize(direct, [x], target="default", method="minmax")
    np.testing.assert_allclose(sim.run(x)["o"], original(direct, {"x": x})["o"], atol=0.02)


def test_names_that_the_fold_would_give_are_taken():
    constants = {name: np.abs(normal(3)) + 0.5 for name in ("bn.scale", "bn.shift", "m", "v")}
    batch_norm = helper.make_node("BatchNormalization", ["y", "bn.scale", "bn.shift", "m", "v"], ["o"], "bn")
    shapes = [("x", ["n", 3, 8, 8])], [("o", ["n", 3, 8, 8])]
    model = model_of([node("Relu", ["x"], ["y"]), batch_norm], *shapes, constants)
    sim = isobit.QuantSim(model)
    sim.apply(FoldBatchNorms())
    assert_float_is_original(sim, model, {"x": normal(2, 3, 8, 8)})


def test_wishes_by_exact_name_and_wrong_kinds():
    constants = {"layer[0].w": normal(3, 4), "b": normal(4)}
    model = model_of([node("Gemm", ["x", "layer[0].w", "b"], ["o"])], [("x", ["n", 3])], [("o", ["n", 4])], constants)
    sim = isobit.quantize(model, [normal(4, 3)], overrides={"layer[0].w": "int4"}, method="minmax")
    assert str(sim.encodings["layer[0].w"].spec) == "int4 symmetric per-channel"
    with pytest.raises(FormatError, match="a bias is int32 or float"):
        isobit.QuantSim(model, overrides={"b": "int8"})
    by_pattern = isobit.quantize(model, [normal(4, 3)], overrides={"*b*": "int16"}, method="minmax")
    assert by_pattern.encodings["b"].spec.bits == 32
    for wrong in ({"exclude": [3]}, {"overrides": {3: "int8"}}, {"target": 3}):
        with pytest.raises(IsobitError, match="3"):
            isobit.QuantSim(model, **wrong)
    with pytest.raises(FormatError, match="not 3"):
        sim.calibrate([normal(4, 3)], 3)
    with pytest.raises(IsobitError, match="None"):
        sim.export(None)


def test_a_plan_without_observed_tensors_can_be_recalibrated():
    model = model_of([node("Relu", ["x"], ["o"])], [("x", ["n", 3])], [("o", ["n", 3])], {})
    with pytest.warns(CoverageWarning, match="nothing was quantized on target 'onnxruntime-cpu'"):
        sim = isobit.quantize(model, [normal(4, 3)], target="onnxruntime-cpu", method="minmax")
    assert len(sim.encodings) == 0
    sim.recalibrate("percentile")


def test_sequences_stay_in_float():
    nodes = [
        node("SplitToSequence", ["x", "one"], ["parts"], axis=1),
        node("ConcatFromSequence", ["parts"], ["joined"], axis=1),
        node("Conv", ["joined", "w"], ["o"]),
    ]
    shapes = [("x", ["n", 2, 5, 5])], [("o", ["n", 3, 3, 3])]
    model = model_of(nodes, *shapes, {"w": normal(3, 2, 3, 3), "one": np.array(1)})
    x = normal(2, 2, 5, 5)
    sim = isobit.quantize(model, [x])
    np.testing.assert_allclose(sim.run(x)["o"], original(model, {"x": x})["o"], atol=0.3)
