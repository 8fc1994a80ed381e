"""Files whose weights another tool has stored as integers, between float activations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from small_models import MICROSOFT, constant, model, node, value

import isobit
from isobit.errors import EncodingError, ModelError
from isobit.graph import Weight
from isobit_onnx.backend import OnnxBackend
from isobit_onnx.model import OnnxModel

RNG = np.random.default_rng(23)
X = RNG.standard_normal((5, 32)).astype(np.float32)

#: Type of the integers, shape of the scales, axis, block size, and the file's opset.
FORMS: dict[str, tuple[int, tuple[int, ...], dict[str, int], int]] = {
    "int8, one scale": (TensorProto.INT8, (), {}, 13),
    "uint8, one scale, before scales had an axis": (TensorProto.UINT8, (), {}, 10),
    "int8 by channel": (TensorProto.INT8, (24,), {"axis": 1}, 13),
    "int8 by row, counted from the end": (TensorProto.INT8, (32,), {"axis": -2}, 17),
    "uint8 by channel": (TensorProto.UINT8, (24,), {"axis": 1}, 17),
    "int4 in blocks": (TensorProto.INT4, (2, 24), {"axis": 0, "block_size": 16}, 21),
    "uint4 in blocks": (TensorProto.UINT4, (4, 24), {"axis": 0, "block_size": 8}, 21),
}
LIMITS = {
    TensorProto.INT8: (-128, 128), TensorProto.UINT8: (0, 256),
    TensorProto.INT4: (-8, 8), TensorProto.UINT4: (0, 16),
}  # fmt: skip


def stored(kind: int, shape: tuple[int, ...]) -> tuple[onnx.TensorProto, np.ndarray]:
    array = RNG.integers(*LIMITS[kind], shape)
    return helper.make_tensor("w_quantized", kind, shape, array.ravel()), array


def network(form: str) -> tuple[onnx.ModelProto, np.ndarray]:
    """A layer with stored weights, and what its integers are."""
    kind, shape, settings, opset = FORMS[form]
    low, high = LIMITS[kind]
    weight, integers = stored(kind, (32, 24))
    zeros = np.full(shape, 0 if low else high // 2)
    constants = {
        "w_quantized": weight,
        "s": constant("s", RNG.uniform(0.01, 0.03, shape)),
        "z": helper.make_tensor("z", kind, shape, zeros.ravel()),
        "v": RNG.standard_normal((24, 3)).astype(np.float32),
    }
    nodes = [
        node("DequantizeLinear", "w_quantized s z", "w_float", **settings),
        node("MatMul", "x w_float", "h"), node("Relu", "h", "r"), node("MatMul", "r v", "y"),
    ]  # fmt: skip
    return model(nodes, [value("x", ["n", 32])], [value("y", None)], constants, opset), integers


def assert_opened_as_given(proto: onnx.ModelProto, x: np.ndarray, atol: float = 1e-4) -> OnnxModel:
    """The opened model, after its output was found equal to that of onnxruntime without optimisation.

    With it, onnxruntime rounds what meets such weights to 8 bits by itself (MatMulNBits), which the file does not say.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": x})
    opened = OnnxBackend().open(proto)
    np.testing.assert_allclose(opened.run({"x": x})["y"], expected, atol=atol, rtol=1e-4)
    return opened


@pytest.mark.parametrize("form", FORMS)
def test_it_is_opened_as_the_floats_that_it_stands_for(form: str) -> None:
    opened = assert_opened_as_given(network(form)[0], X)
    (note,) = [text for text in opened.graph.notes if "integers" in text]
    assert "load_encodings" in note
    assert {"w", "v"} <= opened.graph.weights.keys()


@pytest.mark.parametrize("form", [form for form in FORMS if "row" not in form])
def test_its_own_integers_are_kept(form: str, tmp_path: Path) -> None:
    proto, integers = network(form)
    path = tmp_path / "given.onnx"
    onnx.save(proto, path)
    sim = isobit.QuantSim(path, target="default")
    sim.load_encodings(path, strict=False, freeze=True)
    sim.calibrate([{"x": X}], "minmax")
    sim.export(tmp_path / "out")
    written = onnx.load(tmp_path / "out" / "model.qdq.onnx")
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in written.graph.initializer}
    (reader,) = [n for n in written.graph.node if n.op_type == "DequantizeLinear" and n.input[0].startswith("w_")]
    levels, scale, *zeros = [held[name] for name in reader.input]
    given = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    shifts = [array.reshape(-1)[0].astype(int) for array in (*zeros, given["z"])]
    kept = levels.astype(int) - (shifts[0] if zeros else 0)
    assert np.array_equal(kept, integers - shifts[-1])
    assert np.array_equal(scale, np.broadcast_to(given["s"], scale.shape))


def test_scales_across_the_channels_are_told_and_left_out(tmp_path: Path) -> None:
    proto, _ = network("int8 by row, counted from the end")
    onnx.save(proto, tmp_path / "given.onnx")
    sim = isobit.QuantSim(tmp_path / "given.onnx", target="default")
    report = sim.load_encodings(tmp_path / "given.onnx", strict=False, freeze=True)
    assert "axis" in report.ignored["w"]
    assert Weight("w") not in sim.frozen
    with pytest.raises(EncodingError, match="'w': its scales lie along axis"):
        sim.load_encodings(tmp_path / "given.onnx")


def test_a_weight_of_two_readers_is_one_weight() -> None:
    weight, _ = stored(TensorProto.INT8, (32, 32))
    nodes = [
        node("DequantizeLinear", "w_quantized s", "a"), node("DequantizeLinear", "w_quantized s", "b"),
        node("MatMul", "x a", "h"), node("MatMul", "h b", "y"),
    ]  # fmt: skip
    proto = model(nodes, [value("x", ["n", 32])], [value("y", None)], {"w_quantized": weight, "s": constant("s", 0.01)})
    assert list(assert_opened_as_given(proto, X).graph.weights) == ["w"]


@pytest.mark.parametrize("domain", ["", MICROSOFT])
@pytest.mark.parametrize("names", ["w w_DequantizeLinear_Output", "w_quantized w", "w_q f", "w/integers w"])
def test_names_of_other_tools_lead_to_the_same_integers(names: str, domain: str, tmp_path: Path) -> None:
    held, result = names.split()
    weight, _ = stored(TensorProto.INT8, (32, 8))
    weight.name = held
    nodes = [node("DequantizeLinear", f"{held} s z", result, domain, axis=1), node("MatMul", f"x {result}", "y")]
    zero = constant("z", np.zeros(8), np.int8)
    scales = constant("s", RNG.uniform(0.01, 0.02, 8))
    proto = model(nodes, [value("x", ["n", 32])], [value("y", None)], {held: weight, "s": scales, "z": zero})
    opened = assert_opened_as_given(proto, X)
    (name,) = opened.graph.weights
    onnx.save(proto, tmp_path / "given.onnx")
    sim = isobit.QuantSim(tmp_path / "given.onnx")
    report = sim.load_encodings(tmp_path / "given.onnx", strict=False, freeze=True)
    assert not report.ignored
    assert np.array_equal(np.ravel(sim.frozen[Weight(name)].scale), onnx.numpy_helper.to_array(scales))


def test_weights_in_constants_and_branches() -> None:
    weight, _ = stored(TensorProto.INT8, (32, 8))
    other, _ = stored(TensorProto.INT8, (32, 8))
    inner = [
        helper.make_node("Constant", [], ["q"], value=other),
        node("DequantizeLinear", "q s", "f"), node("MatMul", "x f", "in"),
    ]  # fmt: skip
    outer = [node("DequantizeLinear", "w_quantized s", "g"), node("MatMul", "x g", "out")]
    bodies = [
        helper.make_graph(nodes, "b", [], [value(name, ["n", 8])]) for nodes, name in ((inner, "in"), (outer, "out"))
    ]
    nodes = [
        node("ReduceMax", "x", "m", keepdims=0), node("Greater", "m zero", "c"),
        node("If", "c", "y", then_branch=bodies[0], else_branch=bodies[1]),
    ]  # fmt: skip
    held = {"w_quantized": weight, "s": constant("s", 0.01), "zero": constant("zero", 0.0)}
    proto = model(nodes, [value("x", ["n", 32])], [value("y", ["n", 8])], held)
    for x in (X, -np.abs(X)):
        assert_opened_as_given(proto, x)


@pytest.mark.parametrize("is_half", [True, False])
def test_scales_of_16_bits(is_half: bool) -> None:
    weight, _ = stored(TensorProto.INT8, (32, 8))
    kind = TensorProto.FLOAT16 if is_half else TensorProto.FLOAT
    nodes = [
        node("DequantizeLinear", "w_quantized s", "a"),
        node("Cast", "a", "w", to=kind),
        node("MatMul", "x w", "y"),
    ]
    held: dict[str, Any] = {"w_quantized": weight, "s": constant("s", 0.013, np.float16)}
    proto = model(nodes, [value("x", ["n", 32], kind)], [value("y", None, kind)], held, 19)
    assert_opened_as_given(proto, X.astype(np.float16 if is_half else np.float32), 2e-2 if is_half else 1e-4)


@pytest.mark.parametrize("op", ["QuantizeLinear", "DynamicQuantizeLinear"])
def test_quantized_activations_are_refused_with_the_next_step(op: str) -> None:
    results = "q s z" if op.startswith("Dynamic") else "q"
    nodes = [
        node(op, "x" if op.startswith("Dynamic") else "x t", results),
        node("DequantizeLinear", "q s z" if op.startswith("Dynamic") else "q t", "y"),
    ]
    proto = model(nodes, [value("x", ["n", 4])], [value("y", None)], {"t": constant("t", 0.1)})
    with pytest.raises(ModelError, match="float model that it was made from") as caught:
        isobit.QuantSim(proto)
    assert ("load_encodings" in str(caught.value)) == (op == "QuantizeLinear")
