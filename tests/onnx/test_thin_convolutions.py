"""Files of networks whose thin convolutions stay in float are their simulator, and no run dequantizes a weight."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from small_models import constant, model, node, value

import isobit
from isobit.quantsim import read_encodings

RNG = np.random.default_rng(0)


def _normal(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def _stage(index: int, stride: int) -> list[onnx.NodeProto]:
    """A depthwise layer and a pointwise one behind `h{index}`."""
    names = {name: f"{name}{index}" for name in ("h", "d", "e", "p", "v", "w")}
    channels = 16 << index
    return [
        node(
            "Conv", "{h} {v}".format(**names), "{d}".format(**names), group=channels, pads=[1] * 4, strides=[stride] * 2
        ),
        node("HardSwish", "{d}".format(**names), "{e}".format(**names)),
        node("Conv", "{e} {w}".format(**names), "{p}".format(**names)),
        node("HardSwish", "{p}".format(**names), f"h{index + 1}"),
    ]


NETWORK = model(
    [
        node("Conv", "x stem bias", "s", pads=[1] * 4, strides=[2, 2]),
        node("Relu", "s", "h0"),
        *(part for index in range(4) for part in _stage(index, 1 + (index > 0))),
        node("GlobalAveragePool", "h4", "pooled"),
        node("Flatten", "pooled", "flat"),
        node("Gemm", "flat last", "y", transB=1),
    ],
    [value("x", ["n", 3, 160, 160])],
    [value("y", ["n", 10])],
    {
        "stem": _normal(16, 3, 3, 3),
        "bias": _normal(16, 1)[:, 0],
        **{f"v{index}": _normal(16 << index, 1, 3, 3) for index in range(4)},
        **{f"w{index}": _normal(32 << index, 16 << index, 1, 1) for index in range(4)},
        "last": _normal(10, 256),
    },
)
X = RNG.standard_normal((4, 3, 160, 160)).astype(np.float32)


def run(path: str | Path, entries: dict[str, str], level: str = "ORT_ENABLE_ALL") -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    for key, entry in entries.items():
        options.add_session_config_entry(key, entry)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(["y"], {"x": X})[0]


@pytest.fixture(scope="module")
def sim() -> isobit.QuantSim:
    return isobit.quantize(NETWORK, {"x": X}, recipe="basic", progress=False)


def test_the_stem_reads_floats_and_the_wide_layers_integers(sim: isobit.QuantSim) -> None:
    reasons = sim.report.left_in_float
    assert reasons["n_s"] == reasons["n_d0"] == "integers gain no time here on onnxruntime-cpu"
    assert "n_p3" not in reasons
    assert {"stem", "v0", "w0"}.isdisjoint(reasons)
    assert "thin" in str(sim.report)


def test_a_file_is_its_simulator(sim: isobit.QuantSim, tmp_path: Path) -> None:
    path = sim.export(tmp_path)["model"]
    simulated = sim.run({"x": X})["y"]
    np.testing.assert_array_equal(run(path, {"session.disable_quant_qdq": "1"}, "ORT_ENABLE_EXTENDED"), simulated)
    noise = np.square(run(path, {}) - simulated).sum() / np.square(simulated).sum()
    assert 10 * np.log10(noise) < -25


def test_float_kernels_find_constants(sim: isobit.QuantSim, tmp_path: Path) -> None:
    """A session holds the weights of thin layers as floats in their blocked layout, and computes none of them."""
    path = sim.export(tmp_path)["model"]
    graph = onnx.load(path).graph
    dequantized = {n.output[0] for n in graph.node if n.op_type == "DequantizeLinear"}
    by_weight = {n.input[1]: n for n in graph.node if n.op_type == "Conv"}
    read_as_floats = {name for name in by_weight if name not in dequantized}
    assert any("stem" in name for name in read_as_floats)
    assert all(n.input[0] not in dequantized for name, n in by_weight.items() if name in read_as_floats)
    again = read_encodings(path, sim)
    assert dict(again) == dict(sim.encodings)
    assert not again.unmapped


def test_large_weights_of_other_layers_do_not_hold_them_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = onnx.ModelProto()
    network.CopyFrom(NETWORK)
    del network.graph.node[-1], network.graph.output[:]
    network.graph.initializer.extend(
        constant(name, _normal(*shape)) for name, shape in {"r": (1, 64, 16), "k": (1, 64, 256)}.items()
    )
    network.graph.initializer.append(constant("zero", [0], np.int64))
    network.graph.node.extend(
        [node("Unsqueeze", "flat zero", "steps"), node("LSTM", "steps k r", "all", hidden_size=16)]
    )
    network.graph.output.append(value("all", [1, 1, "n", 16]))
    monkeypatch.setattr("isobit_onnx.export.fold_at_load._MOST", 64 * 256)
    path = isobit.quantize(network, {"x": X}, recipe="basic", progress=False).export(tmp_path)["model"]
    dequantized = {n.output[0] for n in onnx.load(path).graph.node if n.op_type == "DequantizeLinear"}
    nodes = {n.op_type: n for n in onnx.load(path).graph.node if n.op_type in ("LSTM", "Conv")}
    (stem,) = (n for n in onnx.load(path).graph.node if n.op_type == "Conv" and "stem" in n.input[1])
    assert nodes["LSTM"].input[1] in dequantized
    assert stem.input[1] not in dequantized


@pytest.mark.parametrize("between", ["Pad", "MaxPool", "Transpose"])
def test_weights_of_integer_kernels_stay_behind_quantizers(tmp_path: Path, between: str) -> None:
    """Also where something moves values in between: onnxruntime pads, pools and turns integers."""
    attributes = {
        "Pad": {},
        "MaxPool": {"kernel_shape": [2, 2], "strides": [2, 2]},
        "Transpose": {"perm": [0, 1, 3, 2]},
    }
    network = model(
        [
            node("Conv", "x v", "h"),
            node(between, "h pads" if between == "Pad" else "h", "t", **attributes[between]),
            node("Conv", "t w", "y"),
        ],
        [value("x", ["n", 3, 12, 12])],
        [value("y", ["n", 16, "h", "w"])],
        {
            "v": _normal(8, 3, 3, 3),
            "w": _normal(16, 8, 1, 1),
            "pads": constant("pads", [0, 0, 1, 1, 0, 0, 1, 1], np.int64),
        },
    )
    path = isobit.quantize(network, {"x": X[..., :12, :12]}, recipe="basic", progress=False).export(tmp_path)["model"]
    assert not [n for n in onnx.load(path).graph.node if n.op_type == "Cast"]


def _along_axes(axes: int, size: int) -> isobit.QuantSim:
    """The simulator of a first layer of one channel, a depthwise one, and wide ones, over so many axes."""
    ends, taps = {"pads": [1] * (2 * axes)}, [3] * axes
    network = model(
        [
            node("Conv", "x stem", "s", strides=[2] * axes, **ends),
            node("Relu", "s", "a"),
            node("Conv", "a deep", "d", group=16, **ends),
            node("HardSwish", "d", "b"),
            node("Conv", "b wide", "w", strides=[2] * axes, **ends),
            node("Relu", "w", "c"),
            node("Conv", "c last", "l", **ends),
            node("GlobalAveragePool", "l", "y"),
        ],
        [value("x", ["n", 1, *[size] * axes])],
        [value("y", ["n", 64, *[1] * axes])],
        {
            "stem": _normal(16, 1, *taps),
            "deep": _normal(16, 1, *taps),
            "wide": _normal(64, 16, *taps),
            "last": _normal(64, 64, *taps),
        },
    )
    data = RNG.standard_normal((2, 1, *[size] * axes)).astype(np.float32)
    return isobit.quantize(network, {"x": data}, recipe="basic", progress=False)


def test_layers_along_one_axis_stay_on_integers() -> None:
    """There float kernels have no blocks of channels: such layers took 1.1 to 1.5 times as long in float."""
    reasons = _along_axes(1, 32000).report.left_in_float
    assert {"n_s", "n_d"}.isdisjoint(name for name, why in reasons.items() if "gain no time" in why)


@pytest.mark.parametrize(("axes", "size"), [(2, 160), (3, 32)])
def test_a_note_counts_layers_over_a_plane_or_more(axes: int, size: int) -> None:
    report = _along_axes(axes, size).report
    assert {"n_s", "n_d"} <= {name for name, why in report.left_in_float.items() if "gain no time" in why}
    (line,) = (line for line in str(report).splitlines() if "thin" in line)
    assert line.split(":")[0].endswith("and 1 other convolution")
