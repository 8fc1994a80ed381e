"""A weight that several nodes read: the exported file loads and agrees in each session, and its encodings load."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto
from small_models import model, node, value

import isobit
from isobit_onnx.run.saturation import sums_saturate

LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL")
RNG = np.random.default_rng(3)


def _normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


ROWS = [value("x", ["n", 8])], [value("y", ["n", 8])]
VIEW = node("Transpose", "w", "v", perm=[1, 0])
NETWORKS: Mapping[str, tuple[onnx.ModelProto, np.ndarray]] = {
    "convolutions": (
        model(
            [node("Conv", "x w", "h", pads=[1] * 4), node("Relu", "h", "r"), node("Conv", "r w", "y", pads=[1] * 4)],
            [value("x", ["n", 8, 6, 6])],
            [value("y", ["n", 8, 6, 6])],
            {"w": _normal(8, 8, 3, 3) / 8},
        ),
        _normal(4, 8, 6, 6),
    ),
    "products": (
        model(
            [node("MatMul", "x w", "h"), node("Tanh", "h", "t"), node("MatMul", "t w", "y")],
            *ROWS,
            {"w": _normal(8, 8)},
        ),
        _normal(16, 8),
    ),
    "product and Gemm": (
        model(
            [node("MatMul", "x w", "h"), node("Relu", "h", "r"), node("Gemm", "r w b", "y", transB=1)],
            *ROWS,
            {"w": _normal(8, 8), "b": _normal(8)},
        ),
        _normal(16, 8),
    ),
    "three, one by a view": (
        model(
            [
                *(VIEW, node("MatMul", "x w", "h"), node("MatMul", "h v", "k")),
                *(node("Relu", "k", "r"), node("MatMul", "r w", "y")),
            ],
            *ROWS,
            {"w": _normal(8, 8)},
        ),
        _normal(16, 8),
    ),
    "embedding and head": (
        model(
            [VIEW, node("Gather", "w x", "e"), node("Relu", "e", "r"), node("MatMul", "r v", "y")],
            [value("x", ["n"], TensorProto.INT64)],
            [value("y", ["n", 12])],
            {"w": _normal(12, 8)},
        ),
        RNG.integers(0, 12, 32),
    ),
    "recurrent": (
        model(
            [
                node("LSTM", "x w w", "h", hidden_size=8),
                node("LSTM", "x w w", "k", hidden_size=8, direction="reverse"),
                node("Add", "h k", "y"),
            ],
            [value("x", [5, "n", 8])],
            [value("y", [5, 1, "n", 8])],
            {"w": _normal(1, 32, 8) / 3},
        ),
        _normal(5, 4, 8),
    ),
}


@pytest.mark.filterwarnings("ignore:.*runs LSTM in float")
@pytest.mark.parametrize("target", ["default", "onnxruntime-cpu"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_the_file_loads_in_each_session(kind: str, target: str, tmp_path: Path) -> None:
    proto, batch = NETWORKS[kind]
    feeds = {"x": batch}
    sim = isobit.quantize(proto, feeds, recipe="basic", target=target, progress=False)
    path = sim.export(tmp_path)["model"]
    (simulated,) = sim.run(feeds).values()
    for entry in ("0", "1"):
        for level in LEVELS:
            options = onnxruntime.SessionOptions()
            options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
            options.add_session_config_entry("session.x64quantprecision", entry)
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            (executed,) = session.run(None, feeds)
            if entry == "0" and sums_saturate():
                continue  # it loads and runs; this processor's sums are not exact
            # A value on the edge of two steps may fall either way in integer kernels.
            assert np.abs(executed - simulated).max() <= 0.05 * np.abs(simulated).max(), (level, entry)
    if not sim.encodings:
        assert (kind, target) == ("recurrent", "onnxruntime-cpu")  # which runs LSTM, and an Add of floats, in float
        return
    again = isobit.QuantSim(proto, target=target)
    again.load_encodings(path)
    np.testing.assert_array_equal(next(iter(again.run(feeds).values())), simulated)


@pytest.mark.parametrize("kind", ["convolutions", "products", "recurrent"])
def test_the_file_holds_the_integers_once(kind: str, tmp_path: Path) -> None:
    """Readers that see the same channels share the integers; others have scales along another axis."""
    proto, batch = NETWORKS[kind]
    sim = isobit.quantize(proto, {"x": batch}, method="minmax", progress=False)
    written = onnx.load(sim.export(tmp_path)["model"])
    shared = next(tensor for tensor in proto.graph.initializer if tensor.name == "w")
    size = int(np.prod(shared.dims))
    large = [
        tensor for tensor in written.graph.initializer if tensor.name.startswith("w") and np.prod(tensor.dims) >= size
    ]
    assert [tensor.data_type for tensor in large] == [TensorProto.INT8]


def test_a_bias_of_several_layers_is_analyzed() -> None:
    """It is quantized for each reader, at an input that no tensor feeds."""
    convolutions = [node("Conv", "x w b", "h", pads=[1] * 4), node("Conv", "h w b", "y", pads=[1] * 4)]
    shapes = [value("x", ["n", 8, 6, 6])], [value("y", ["n", 8, 6, 6])]
    proto = model(convolutions, *shapes, {"w": _normal(8, 8, 3, 3) / 8, "b": _normal(8)})
    rows = _normal(4, 8, 6, 6)
    sim = isobit.quantize(proto, [rows], recipe="basic", method="minmax", target="default", progress=False)
    assert any(placement.kind == "bias" for placement in sim.plan.placements.values())
    found = isobit.analyze(sim, [rows], checks=0)
    assert sum(site.share for site in found.sites) == pytest.approx(1, abs=0.2)


VIEWED = {
    "Conv": [node("Unsqueeze", "w axis", "v"), node("Conv", "c v", "z")],
    "ConvTranspose": [node("Unsqueeze", "w axis", "v"), node("ConvTranspose", "c v", "z")],
    "MatMul": [node("Transpose", "w", "v", perm=[1, 0]), node("MatMul", "r v", "y")],
}


@pytest.mark.parametrize("kind", VIEWED)
def test_a_layer_made_anew_sees_the_weight_as_before(kind: str) -> None:
    """A bias that is added makes the layers anew, each behind its own view of the constant."""
    in_rows = kind == "MatMul"
    turned = [] if in_rows else [node("Transpose", "r", "c", perm=[0, 2, 1])]
    back = [] if in_rows else [node("Transpose", "z", "y", perm=[0, 2, 1])]
    first = [node("Constant", "", "axis", value_ints=[2]), node("MatMul", "x w", "h"), node("Relu", "h", "r")]
    nodes = [*first, *turned, *VIEWED[kind], *back]
    shapes = [value("x", ["n", 6, 8])], [value("y", ["n", 6, 8])]
    proto = model(nodes, *shapes, {"w": _normal(8, 8)})
    data = [{"x": _normal(4, 6, 8)} for _ in range(3)]
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, data[0])
    sim = isobit.QuantSim(proto)
    sim.apply(isobit.techniques.CorrectBias(), data=data, progress=False)
    sim.calibrate(data, progress=False)
    (simulated,) = sim.run(data[0]).values()
    assert np.square(simulated - expected).sum() < 1e-3 * np.square(expected).sum()
