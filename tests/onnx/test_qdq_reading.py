"""QDQ models read back into encodings: our own exports of every kind of format, and onnxruntime's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

import isobit
from isobit.errors import EncodingError, OutputError
from isobit.formats import Names
from isobit.graph import Input, Tensor, Weight
from isobit.quantsim import read_encodings, write_encodings
from isobit_onnx.qdq.check_quantized import check_complete
from isobit_onnx.translate.sites import NativeSite

RNG = np.random.default_rng(5)
DATA = RNG.standard_normal((8, 4, 8, 8)).astype(np.float32)


def network() -> onnx.ModelProto:
    """Conv, ConvTranspose in two groups, a pooled value inside a node, MatMul and Gemm; a residual."""
    shapes = {"conv.w": (8, 4, 3, 3), "up.w": (8, 4, 2, 2), "mm.w": (8, 8), "fc.w": (6, 8)}
    weights = [numpy_helper.from_array(RNG.standard_normal(s).astype(np.float32), n) for n, s in shapes.items()]
    weights += [
        numpy_helper.from_array(RNG.standard_normal(n).astype(np.float32), f"{w}.b")
        for w, n in (("conv", 8), ("fc", 6))
    ]
    nodes = [
        helper.make_node("Conv", ["x", "conv.w", "conv.b"], ["c"], name="conv", pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("ConvTranspose", ["r", "up.w"], ["u"], name="up", group=2),
        helper.make_node("GlobalAveragePool", ["u"], ["g"], name="gap"),
        helper.make_node("Flatten", ["g"], ["f"], name="flat"),
        helper.make_node("MatMul", ["f", "mm.w"], ["m"], name="mm"),
        helper.make_node("Add", ["m", "f"], ["a"], name="add"),
        helper.make_node("Gemm", ["a", "fc.w", "fc.b"], ["y"], name="fc", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 6])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return network()


@pytest.mark.parametrize(
    ("weights", "activations"),
    [
        ("int8", "uint8"),
        ("int8 per-tensor", "int16"),
        ("int4 block=2", "uint6"),
        ("uint8 asymmetric", "int5"),
        ("float8e4m3", "float8e5m2"),
        ("float16", "bfloat16"),
    ],
)
def test_our_own_exports_come_back_exactly(
    model: onnx.ModelProto, weights: str, activations: str, tmp_path: Path
) -> None:
    sim = isobit.QuantSim(model, weights=weights, activations=activations)
    sim.calibrate(DATA)
    path = sim.export(tmp_path)["model"]
    encodings = read_encodings(path, sim)
    assert dict(encodings) == dict(sim.encodings)
    assert not encodings.unmapped
    fresh = isobit.QuantSim(model, weights=weights, activations=activations)
    fresh.load_encodings(path)
    np.testing.assert_array_equal(fresh.run(DATA)["y"], sim.run(DATA)["y"])


@pytest.mark.parametrize(
    "weights", ["int2", "int3", "int5", "int6 strict", "int7 asymmetric", "int8 strict", "uint6 asymmetric", "int12"]
)
def test_widths_that_weights_are_stored_wider_in(model: onnx.ModelProto, weights: str, tmp_path: Path) -> None:
    """The file says int8 of a weight of 6 bits; what its levels are is in the metadata."""
    sim = isobit.QuantSim(model, weights=weights)
    sim.calibrate(DATA)
    encodings = read_encodings(sim.export(tmp_path)["model"], sim)
    assert dict(encodings) == dict(sim.encodings)


@pytest.mark.parametrize("said", ["int9", "uint6", "int6 block=", "six"])
def test_metadata_that_do_not_fit_are_refused(model: onnx.ModelProto, said: str, tmp_path: Path) -> None:
    sim = isobit.QuantSim(model, weights="int6")
    sim.calibrate(DATA)
    path = sim.export(tmp_path)["model"]
    written = onnx.load(path)
    for node in written.graph.node:
        for entry in node.metadata_props:
            entry.value = said
    onnx.save(written, path)
    with pytest.raises(EncodingError, match="metadata"):
        read_encodings(path, sim)


def test_a_file_that_says_nothing_has_the_width_of_the_storage(model: onnx.ModelProto, tmp_path: Path) -> None:
    sim = isobit.QuantSim(model, weights="int3")
    sim.calibrate(DATA)
    path = sim.export(tmp_path)["model"]
    written = onnx.load(path)
    for node in written.graph.node:
        del node.metadata_props[:]
    onnx.save(written, path)
    encodings = read_encodings(path, sim)
    assert encodings["conv.w"].spec.type_name == "int4"
    np.testing.assert_array_equal(encodings["conv.w"].scale, sim.encodings["conv.w"].scale)
    with pytest.raises(EncodingError, match="the file says int4"):
        isobit.QuantSim(model, weights="int3").load_encodings(path)


class Batches(CalibrationDataReader):
    def __init__(self) -> None:
        self.left = iter(DATA[:, None])

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.left, None)
        return None if batch is None else {"x": batch}


@pytest.mark.parametrize("per_channel", [True, False])
def test_models_that_onnxruntime_quantized(model: onnx.ModelProto, per_channel: bool, tmp_path: Path) -> None:
    onnx.save(model, tmp_path / "float.onnx")
    quantize_static(
        tmp_path / "float.onnx", tmp_path / "q.onnx", Batches(), QuantFormat.QDQ, per_channel=per_channel,
        weight_type=QuantType.QInt8, extra_options={"WeightSymmetric": True},
    )  # fmt: skip
    proto = onnx.load(tmp_path / "q.onnx")
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    sim = isobit.QuantSim(model)
    encodings = read_encodings(tmp_path / "q.onnx", sim)
    assert {
        Tensor("x"),
        Tensor("relu"),
        Weight("conv.w"),
        Weight("mm.w"),
        Weight("fc.w"),
        Weight("conv.b"),
    } <= encodings.keys()
    for name in ("conv.w", "mm.w", "fc.w"):
        np.testing.assert_array_equal(encodings[name].scale.reshape(-1), stored[f"{name}_scale"].reshape(-1))
        values = dict(zip((t.name for t in model.graph.initializer), model.graph.initializer, strict=True))[name]
        canonical = numpy_helper.to_array(values).T if name == "mm.w" else numpy_helper.to_array(values)
        integers = stored[f"{name}_quantized"]
        # onnxruntime rounds with its own division: one step apart in a tie at most
        assert np.abs(encodings[name].quantize(canonical) - (integers.T if name == "mm.w" else integers)).max() <= 1
    np.testing.assert_array_equal(encodings["x"].zero_point, stored["x_zero_point"])
    report = sim.load_encodings(tmp_path / "q.onnx", strict=False)
    np.testing.assert_array_equal(sim.encodings["conv.w"].scale, np.broadcast_to(encodings["conv.w"].scale, (8,)))
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(str(tmp_path / "q.onnx"), options, providers=["CPUExecutionProvider"])
    expected = session.run(None, {"x": DATA})[0]
    assert np.abs(sim.run(DATA)["y"] - expected).max() < 0.02 * np.abs(expected).max(), str(report)


def test_a_file_without_a_model_goes_by_its_own_names(model: onnx.ModelProto, tmp_path: Path) -> None:
    sim = isobit.QuantSim(model)
    sim.calibrate(DATA)
    encodings = read_encodings(sim.export(tmp_path)["model"])
    assert encodings[Tensor("r")] == sim.encodings["relu"], "r is the value, relu the node"
    assert encodings[Weight("conv.w")] == sim.encodings["conv.w"]
    assert encodings[Weight("mm.w")].axis == 1, "the file's layout"


def test_a_qdq_model_is_written_from_encodings(model: onnx.ModelProto, tmp_path: Path) -> None:
    sim = isobit.QuantSim(model)
    sim.calibrate(DATA)
    write_encodings(sim.encodings, tmp_path / "again.onnx", "onnx-qdq", sim)
    assert dict(read_encodings(tmp_path / "again.onnx", sim)) == dict(sim.encodings)
    with pytest.raises(EncodingError, match="is written from a float model: give the model"):
        write_encodings(sim.encodings, tmp_path / "none.onnx", "onnx-qdq")


def test_single_readers_come_back(model: onnx.ModelProto, tmp_path: Path) -> None:
    sim = isobit.QuantSim(model, overrides={"add[1]": "int16"})
    sim.calibrate(DATA)
    encodings = read_encodings(sim.export(tmp_path)["model"], sim)
    assert encodings[Input("add", 1)] == sim.encodings[Input("add", 1)]
    fresh = isobit.QuantSim(model, overrides={"add[1]": "int16"})
    fresh.load_encodings(tmp_path / "model.qdq.onnx")
    assert dict(fresh.encodings) == dict(sim.encodings), "what is left of the tensor's readers speaks for the tensor"


def test_what_is_no_quantized_model(model: onnx.ModelProto, tmp_path: Path) -> None:
    onnx.save(model, tmp_path / "float.onnx")
    (tmp_path / "torn.onnx").write_bytes((tmp_path / "float.onnx").read_bytes()[:500])
    for name, message in (
        ("float", "it is not quantized"),
        ("torn", "not an ONNX model, or truncated"),
        ("no", "no such file"),
    ):
        with pytest.raises(EncodingError, match=rf"{name}\.onnx: .*{message}"):
            read_encodings(tmp_path / f"{name}.onnx")


def test_aimet_files_go_with_the_float_model_of_the_export(model: onnx.ModelProto, tmp_path: Path) -> None:
    sim = isobit.QuantSim(model)
    sim.calibrate(DATA)
    paths = sim.export(tmp_path, encodings_formats=["aimet-1.0.0", "aimet-2.0.0"])
    assert paths["aimet-1.0.0"].name == "model.aimet-1.0.0.encodings"
    names = {value for node in onnx.load(paths["float_model"]).graph.node for value in (*node.input, *node.output)}
    for form in ("aimet-1.0.0", "aimet-2.0.0"):
        assert {site for site in read_encodings(paths[form])} <= {
            kind(n) for n in names | {"x"} for kind in (Tensor, Weight)
        }
        other = isobit.QuantSim(paths["float_model"])
        other.load_encodings(paths[form], partial=False, freeze=True)
        np.testing.assert_array_equal(other.run(DATA)["y"], sim.run(DATA)["y"])
    assert Names.of(sim).find("g")[0].inner, "the value inside the pooling node has the encoding of its output"


def test_an_export_that_lacks_a_quantizer_is_refused(model: onnx.ModelProto, tmp_path: Path) -> None:
    """The file of fewer encodings than the target quantizes: what a bug in a writer would leave."""
    sim = isobit.QuantSim(model)
    sim.calibrate(DATA)
    path = sim.export(tmp_path)["model"]
    check_complete(path, [(NativeSite("r"), sim.encodings["relu"])], {})
    proto = onnx.load(path)
    for node in proto.graph.node:
        for index, name in enumerate(node.input):
            if name == "r_dequantized":
                node.input[index] = "r"
    for node in [n for n in proto.graph.node if any(o.startswith("r_") for o in n.output)]:
        proto.graph.node.remove(node)
    onnx.save(proto, tmp_path / "lacking.onnx")
    with pytest.raises(OutputError, match="no quantizer at 'r', which the target quantizes"):
        check_complete(tmp_path / "lacking.onnx", [(NativeSite("r"), sim.encodings["relu"])], {})
