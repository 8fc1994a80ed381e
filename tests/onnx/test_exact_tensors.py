"""Networks of phases, spectra and indices lose little in the written file, in every session."""

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


def _model(nodes: list[onnx.NodeProto], x: list[object], rank: int, **constants: object) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", T.FLOAT, x)],
        [helper.make_tensor_value_info("y", T.FLOAT, ["n", *[None] * (rank - 1)])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def time_embedding() -> Case:
    nodes = [
        node("Mul", ["x", "rates"], ["phase"]),
        node("Sin", ["phase"], ["s"]),
        node("Cos", ["phase"], ["c"]),
        node("Concat", ["s", "c"], ["e"], axis=1),
        node("Gemm", ["e", "w"], ["y"]),
    ]
    rates = (1000.0 ** (-np.arange(8) / 8)).astype(np.float32)[None]
    return _model(nodes, ["n", 1], 2, rates=rates, w=_normal(16, 4)), np.arange(0, 1000, 7, np.float32)[:, None]


def fourier_features() -> Case:
    nodes = [
        node("MatMul", ["x", "b"], ["phase"]),
        node("Sin", ["phase"], ["s"]),
        node("Gemm", ["s", "w"], ["y"]),
    ]
    return _model(nodes, ["n", 3], 2, b=20 * _normal(3, 32), w=_normal(32, 4)), np.random.default_rng(3).random(
        (64, 3)
    ).astype(np.float32)


def _spectrum(*rest: onnx.NodeProto, **constants: object) -> Case:
    angles = np.outer(np.arange(8), np.arange(16)) * np.pi / 8
    basis = np.concatenate([np.cos(angles), np.sin(angles)])[:, None].astype(np.float32)
    nodes = [
        node("Conv", ["x", "basis"], ["st"], strides=[4]),
        node("Split", ["st"], ["re", "im"], axis=1),
        node("Mul", ["re", "re"], ["re2"]),
        node("Mul", ["im", "im"], ["im2"]),
        node("Add", ["re2", "im2"], ["power"]),
        *rest,
    ]
    sound = (_normal(32, 1, 64) * np.exp(0.5 * _normal(32, 1, 1))).astype(np.float32)
    return _model(nodes, ["n", 1, 64], 3, basis=basis, **constants), sound


def magnitudes() -> Case:
    return _spectrum(node("Sqrt", ["power"], ["m"]), node("Conv", ["m", "w"], ["y"]), w=_normal(8, 8, 3))


def log_bands() -> Case:
    nodes = [
        node("Transpose", ["power"], ["t"], perm=[0, 2, 1]),
        node("MatMul", ["t", "bands"], ["b"]),
        node("Add", ["b", "eps"], ["positive"]),
        node("Log", ["positive"], ["l"]),
        node("MatMul", ["l", "w"], ["y"]),
    ]
    return _spectrum(*nodes, bands=np.abs(_normal(8, 6)), eps=np.float32(1e-2), w=np.abs(_normal(6, 4)))


def table() -> Case:
    nodes = [
        node("Mul", ["x", "k"], ["place"]),
        node("Floor", ["place"], ["floor"]),
        node("Cast", ["floor"], ["row"], to=T.INT64),
        node("Gather", ["table", "row"], ["e"]),
        node("MatMul", ["e", "w"], ["y"]),
    ]
    constants = {"k": np.float32(299), "table": _normal(300, 8), "w": _normal(8, 4)}
    return _model(nodes, ["n", 5], 3, **constants), np.random.default_rng(3).random((64, 5)).astype(np.float32)


def transformer_of_space(form: str) -> Case:
    """Places by a product of predicted coefficients and a constant grid, as exporters spell affine_grid."""
    rows = 2 if form == "rotation" else 3
    ys, xs = np.meshgrid(np.linspace(-1, 1, 16), np.linspace(-1, 1, 16), indexing="ij")
    base = np.stack([xs.ravel(), ys.ravel(), np.ones(256)])[:rows].astype(np.float32)
    nodes = [
        node("GlobalAveragePool", ["x"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node("Gemm", ["f", "w", "b"], ["t"]),
        node("Reshape", ["t", "s"], ["theta"]),
    ]
    if form == "left":
        nodes += [node("Transpose", ["theta"], ["tt"], perm=[0, 2, 1]), node("MatMul", ["base", "tt"], ["gt"])]
    elif form == "einsum":
        nodes += [node("Einsum", ["theta", "base"], ["gt"], equation="bij,jk->bki")]
    else:
        nodes += [node("MatMul", ["theta", "base"], ["g"]), node("Transpose", ["g"], ["gt"], perm=[0, 2, 1])]
    nodes += [node("Reshape", ["gt", "gs"], ["grid"]), node("GridSample", ["x", "grid"], ["v"])]
    constants = {
        "w": 0.3 * _normal(3, 2 * rows), "b": np.eye(2, rows, dtype=np.float32).ravel(), "k": 0.3 * _normal(8, 3, 3, 3),
        "base": base.T[None].copy() if form == "left" else base, "s": np.array([-1, 2, rows]),
        "gs": np.array([-1, 16, 16, 2]),
    }  # fmt: skip
    return _model([*nodes, node("Conv", ["v", "k"], ["y"])], ["n", 3, 16, 16], 4, **constants), _normal(12, 3, 16, 16)


def _db(exact: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(np.square(exact).sum() / np.square(exact - other).sum()))


@pytest.mark.parametrize("target", ["default", "onnxruntime-cpu"])
@pytest.mark.parametrize("make", [time_embedding, fourier_features, magnitudes, log_bands, table])
def test_little_is_lost_in_any_session(make: Callable[[], Case], target: str, tmp_path: Path) -> None:
    model, x = make()
    sim = isobit.quantize(model, x, target=target, progress=False)
    layers = sum(n.op_type in ("Conv", "Gemm", "MatMul", "Gather") for n in model.graph.node)
    assert sim.report.counts["weight"] == layers
    assert any("reads it as" in why or "count" in why or "whole" in why for why in sim.report.left_in_float.values())
    exact = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    path = str(sim.export(tmp_path)["model"])
    for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"):
        options = ort.SessionOptions()
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
        written = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        assert _db(exact, written.run(None, {"x": x})[0]) > 20


@pytest.mark.parametrize("form", ["right", "left", "einsum", "rotation"])
def test_places_that_a_product_gives_are_exact(form: str, tmp_path: Path) -> None:
    model, x = transformer_of_space(form)
    exported = isobit.quantize(model, x, progress=False).export(tmp_path)
    assert min(exported.sqnr.values()) > 32
    assert all(check.equal == 1 for check in exported.checks)
