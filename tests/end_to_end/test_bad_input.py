"""What a user can get wrong is answered by an IsobitError that names it, and leaves nothing behind."""

from __future__ import annotations

import os

import numpy as np
import pytest
from onnx import numpy_helper

import isobit
from isobit.errors import DataError, FormatError, IsobitError, ModelError, OutputError, PluginError, TargetError
from isobit.testing.networks import NETWORKS
from isobit_onnx.reference_networks import build_onnx


@pytest.fixture
def network():
    return NETWORKS["conv_net"]()


@pytest.fixture
def model(network):
    return build_onnx(network)


@pytest.fixture
def sim(model):
    return isobit.QuantSim(model)


def image(*shape):
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ([{"picture": image(2, 3, 16, 16)}], r"batch 0 has no array for input 'image'"),
        ([{"images": image(2, 3, 16, 16)}], r"did you mean 'images'"),
        ([image(2, 3, 16, 16), image(2, 3, 15, 16)], r"'image' in batch 1 has shape \(2, 3, 15, 16\)"),
        ([image(3, 16, 16)], r"shape \(3, 16, 16\)"),
        ([np.zeros((2, 3, 16, 16), np.uint8)], r"is uint8, and the model takes float32"),
        ([np.array([["a"]])], r"takes float32"),
        ([], "empty"),
        (iter([]), "empty"),
        (np.zeros((0, 3, 16, 16), np.float32), "empty"),
        ([[]], "holds 0 array"),
        (3, "must be batches"),
        ("data.npz", "text"),
        (None, "no data"),
        ([3.5], "float"),
    ],
)
def test_data(sim, data, says):
    with pytest.raises(DataError, match=says):
        sim.calibrate(data)
    assert len(sim.encodings) == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_data_names_tensor_and_batch(sim, value):
    bad = image(2, 3, 16, 16)
    bad[1, 2, 3, 4] = value
    with pytest.raises(DataError, match=r"'image' in batch 1 holds (NaN|infinity)"):
        sim.calibrate([image(2, 3, 16, 16), bad])
    sim.calibrate(
        [np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32), bad], ignore_non_finite=True
    )
    assert np.isfinite(sim.encodings["image"].scale)


def test_values_that_overflow_inside_the_network(network):
    """Finite data and weights whose product is not: the tensor and the batch are named."""
    network.weights["conv1.weight"][:] = 1e30
    sim = isobit.QuantSim(build_onnx(network))
    small, large = np.full((1, 3, 16, 16), 1e-30, np.float32), np.full((1, 3, 16, 16), 1e30, np.float32)
    with pytest.raises(DataError, match=r"holds NaN or infinity in batch 1"):
        sim.calibrate([small, large, small])


@pytest.mark.parametrize(("value", "says"), [(np.nan, "NaN"), (np.inf, "infinity")])
def test_non_finite_weights_are_named(network, value, says):
    network.weights["conv2.weight"][0, 0, 0, 0] = value
    with pytest.raises(ModelError, match=rf"'conv2\.weight' holds {says}"):
        isobit.QuantSim(build_onnx(network))


def test_a_failed_calibration_keeps_the_earlier_one(network, model):
    data = [network.batch(4, seed=seed) for seed in range(2)]
    sim = isobit.quantize(model, data)
    before, outputs = dict(sim.encodings), sim.run(data[0])
    with pytest.raises(DataError):
        sim.calibrate([*data, {"image": image(2, 3, 15, 16)}])
    assert dict(sim.encodings) == before
    np.testing.assert_array_equal(sim.run(data[0])["logits"], outputs["logits"])


def test_names(model):
    with pytest.raises(TargetError, match=r"unknown target 'onnxruntime'.*did you mean 'onnxruntime-cpu'"):
        isobit.QuantSim(model, target="onnxruntime")
    with pytest.raises(TargetError, match=r"cannot read target file .*none\.toml"):
        isobit.QuantSim(model, target="none.toml")
    with pytest.raises(FormatError, match=r"unknown number type 'itn8'.*did you mean 'int8'"):
        isobit.QuantSim(model, weights="itn8")
    with pytest.raises(FormatError, match=r"cannot run activations of type int4; it runs: uint8, int8, uint16, int16"):
        isobit.QuantSim(model, target="onnxruntime-cpu", activations="int4")
    with pytest.raises(FormatError, match=r"override 'conv9\*' matches no tensor or weight"):
        isobit.QuantSim(model, overrides={"conv9*": "int4"})
    with pytest.raises(FormatError, match=r"exclude 'Softmx'"):
        isobit.QuantSim(model, exclude=["Softmx"])
    with pytest.raises(PluginError, match=r"no backend 'onxn'.*did you mean 'onnx'"):
        isobit.QuantSim(model, backend="onxn")
    with pytest.raises(PluginError, match=r"no backend opens a dict"):
        isobit.QuantSim({})
    with pytest.raises(PluginError, match=r"no backend opens 'model\.h5'"):
        isobit.QuantSim("model.h5")


def test_methods(sim, network):
    with pytest.raises(FormatError, match=r"unknown calibration method 'min-max'.*did you mean 'minmax'"):
        sim.calibrate([network.batch(2)], "min-max")
    with pytest.raises(FormatError, match=r"percentile=200.*up to 100"):
        sim.calibrate([network.batch(2)], "percentile=200")
    with pytest.raises(DataError, match="calibrate with data first"):
        sim.recalibrate("minmax")


def test_export_before_calibration_and_where_nothing_can_be_written(sim, network, tmp_path):
    with pytest.raises(ModelError, match="calibrate first"):
        sim.export(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    sim.calibrate([network.batch(2)])
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="is not a folder"):
        sim.export(tmp_path / "file" / "out")
    assert os.listdir(tmp_path) == ["file"]


def test_an_export_that_fails_leaves_the_folder_as_it_was(sim, network, tmp_path, monkeypatch):
    sim.calibrate([network.batch(2)])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.qdq.onnx").write_text("an earlier export")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("isobit.formats.isobit_json.IsobitJson.write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sim.export(tmp_path / "out")
    assert os.listdir(tmp_path / "out") == ["model.qdq.onnx"]
    assert (tmp_path / "out" / "model.qdq.onnx").read_text() == "an earlier export"


def test_an_export_that_fails_removes_every_folder_it_made(sim, network, tmp_path, monkeypatch):
    sim.calibrate([network.batch(2)])

    def broken(*_):
        raise ModelError("no")

    monkeypatch.setattr("isobit_onnx.export.export_qdq.save_model", broken)
    with pytest.raises(ModelError):
        sim.export(tmp_path / "new" / "deep" / "out")
    assert os.listdir(tmp_path) == []


def test_models(tmp_path, model):
    path = tmp_path / "cut.onnx"
    path.write_bytes(model.SerializeToString()[:500])
    with pytest.raises(IsobitError, match=r"cut\.onnx"):
        isobit.QuantSim(path)
    unknown = type(model)()
    unknown.CopyFrom(model)
    unknown.graph.node[0].op_type = "Convv"
    with pytest.raises(ModelError, match="Convv"):
        isobit.QuantSim(unknown)
    constant_output = type(model)()
    constant_output.CopyFrom(model)
    constant_output.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "fixed"))
    value = constant_output.graph.output.add()
    value.CopyFrom(model.graph.output[0])
    value.name = "fixed"
    graph = isobit.QuantSim(constant_output).graph
    assert graph.tensors[graph.outputs["fixed"]].shape == (3,)  # whatever the file says of it
