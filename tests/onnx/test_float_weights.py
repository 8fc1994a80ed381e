"""A weight that stays in float beside quantized activations is float in every session of onnxruntime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper

import isobit

node = helper.make_node
Case = tuple[onnx.ModelProto, np.ndarray]


def _normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def _model(nodes: list[onnx.NodeProto], x: np.ndarray, **constants: np.ndarray) -> Case:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", T.FLOAT, ["n", *x.shape[1:]])],
        [helper.make_tensor_value_info("y", T.FLOAT, [None] * x.ndim)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), x


def convolutions() -> Case:
    """One input channel, a bias, a Relu between, and a layer without a bias."""
    nodes = [
        node("Conv", ["x", "w0", "b0"], ["a"]),
        node("Relu", ["a"], ["r"]),
        node("Conv", ["r", "w1"], ["c"], group=2),
        node("Conv", ["c", "w2"], ["y"]),
    ]
    return _model(
        nodes, _normal(8, 1, 32), w0=_normal(8, 1, 3), b0=_normal(8), w1=_normal(8, 4, 3), w2=_normal(4, 8, 3)
    )


def products() -> Case:
    nodes = [
        node("Gemm", ["x", "w0", "b0"], ["a"]),
        node("Gemm", ["a", "w1"], ["c"], transB=1),
        node("Gemm", ["c", "w2"], ["y"]),
    ]
    return _model(nodes, _normal(32, 8), w0=_normal(8, 6), b0=1e-6 * _normal(6), w1=_normal(5, 6), w2=_normal(5, 4))


def transposed() -> Case:
    nodes = [
        node("ConvTranspose", ["x", "w0", "b0"], ["a"]),
        node("ConvTranspose", ["a", "w1"], ["c"], group=2),
        node("Conv", ["c", "w2"], ["y"]),
    ]
    return _model(
        nodes, _normal(8, 4, 16), w0=_normal(4, 8, 3), b0=_normal(8), w1=_normal(8, 3, 3), w2=_normal(4, 6, 3)
    )


def _distance(reference: np.ndarray, path: str, x: np.ndarray, level: str) -> float:
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    result = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    return float(np.square(reference - result).sum() / np.square(reference).sum())


@pytest.mark.parametrize("weight", ["w0", "w1", "w2"])
@pytest.mark.parametrize("make", [convolutions, products, transposed])
def test_file_and_simulator_agree_at_every_level(make: Callable[[], Case], weight: str, tmp_path: Path) -> None:
    model, x = make()
    for kept in (None, "float16"):
        target = "default" if kept else "onnxruntime-cpu"
        sim = isobit.quantize(model, x, recipe="basic", target=target, overrides={weight: kept}, progress=False)
        path, simulated = str(sim.export(tmp_path / str(kept))["model"]), sim.run(x)["y"]
        for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"):
            assert _distance(simulated, path, x, level) < 1e-6, (kept, level)
        again = isobit.QuantSim(model, target=target, overrides={weight: kept})
        again.load_encodings(path)
        assert np.array_equal(again.run(x)["y"], simulated)
        assert not any("mantissas" in str(site) for site in again.encodings)


def test_excluded_layers_stay_as_they_are(tmp_path: Path) -> None:
    model, x = convolutions()
    model.graph.node[2].name = "middle"
    sim = isobit.quantize(model, x, target="onnxruntime-cpu", exclude="middle", progress=False)
    assert _distance(sim.run(x)["y"], str(sim.export(tmp_path)["model"]), x, "ORT_ENABLE_ALL") < 1e-6
