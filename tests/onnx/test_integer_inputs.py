"""Models that read integers: quantized as those that read floats are, next to onnxruntime on the user's own file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper

import isobit

RNG = np.random.default_rng(3)
Case = tuple[onnx.ModelProto, np.ndarray]


def _model(
    nodes: list[onnx.NodeProto], kind: int, shape: list[object], output: list[object], **constants: np.ndarray
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", T.FLOAT, output)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def counts() -> Case:
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=T.FLOAT),
        helper.make_node("Div", ["f", "k"], ["s"]),
        helper.make_node("Gemm", ["s", "w", "b"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "v"], ["y"]),
    ]
    constants = {"k": np.float32(100), "w": _normal(12, 16), "b": _normal(16), "v": _normal(16, 4)}
    return _model(nodes, T.INT32, ["n", 12], ["n", 4], **constants), RNG.integers(-500, 500, (64, 12)).astype(np.int32)


def planes() -> Case:
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=T.FLOAT),
        helper.make_node("Conv", ["f", "w"], ["c"], pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Conv", ["r", "v"], ["y"]),
    ]
    constants = {"w": _normal(8, 3, 3, 3), "v": _normal(4, 8, 1, 1)}
    return _model(nodes, T.BOOL, ["n", 3, 8, 8], ["n", 4, 8, 8], **constants), RNG.integers(0, 2, (32, 3, 8, 8)).astype(
        bool
    )


def codes() -> Case:
    nodes = [
        helper.make_node("OneHot", ["x", "depth", "ends"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["h"]),
        helper.make_node("Tanh", ["h"], ["t"]),
        helper.make_node("MatMul", ["t", "v"], ["y"]),
    ]
    constants = {"depth": np.int64(6), "ends": np.float32([0, 1]), "w": _normal(6, 16), "v": _normal(16, 4)}
    return _model(nodes, T.INT64, ["n", 5], ["n", 5, 4], **constants), RNG.integers(0, 6, (64, 5)).astype(np.int64)


@pytest.mark.parametrize("case", [counts, planes, codes], ids=lambda case: case.__name__)
def test_both_weights_are_quantized_and_the_file_says_what_the_model_said(case: object, tmp_path: Path) -> None:
    model, data = case()  # type: ignore[operator]
    sim = isobit.quantize(model, data, target="onnxruntime-cpu", progress=False)
    assert sim.report.counts["weight"] == 2
    path = sim.export(tmp_path)["model"]
    exact, rounded = (
        ort.InferenceSession(source, providers=["CPUExecutionProvider"]).run(None, {"x": data})[0]
        for source in (model.SerializeToString(), str(path))
    )
    assert 10 * np.log10(np.square(exact).sum() / np.square(exact - rounded).sum()) > 25
