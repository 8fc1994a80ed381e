"""Attention of opset 23 with a cache: onnxruntime runs it only with outputs for the longer one, whoever reads these."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from small_models import model, node, value

import isobit

RNG = np.random.default_rng(0)
LEVELS = onnxruntime.GraphOptimizationLevel


def decoder(outputs: tuple[str, ...]) -> onnx.ModelProto:
    weights = {name: RNG.standard_normal((16, 16)).astype(np.float32) / 4 for name in ("wq", "wk", "wv", "wo")}
    nodes = [
        *(node("MatMul", f"x w{part}", part) for part in "qkv"),
        node("Attention", "q k v mask past_k past_v", "a now_k now_v", q_num_heads=2, kv_num_heads=2),
        node("MatMul", "a wo", "y"),
    ]
    cache, now = ["b", 2, "past", 8], ["b", 2, "all", 8]
    shapes = {"y": ["b", "t", 16], "now_k": now, "now_v": now}
    inputs = [
        value("x", ["b", "t", 16]),
        value("mask", ["t", "all"], onnx.TensorProto.BOOL),
        value("past_k", cache),
        value("past_v", cache),
    ]
    return model(nodes, inputs, [value(name, shapes[name]) for name in outputs], weights, 23)


@pytest.mark.parametrize("outputs", [("y",), ("y", "now_v"), ("y", "now_k", "now_v")], ids="-".join)
@pytest.mark.parametrize("recipe", ["fast", "ptq"])
def test_outputs_for_the_cache_stay(outputs: tuple[str, ...], recipe: str, tmp_path: Path) -> None:
    proto = decoder(outputs)
    steps = [
        {
            "x": RNG.standard_normal((3, 4, 16)).astype(np.float32),
            "mask": np.tril(np.ones((4, 4 + past), bool), past),
            **{name: RNG.standard_normal((3, 2, past, 8)).astype(np.float32) for name in ("past_k", "past_v")},
        }
        for past in (2, 5)
    ]
    sim = isobit.quantize(proto, steps, recipe=recipe, target="onnxruntime-cpu", progress=False)
    assert sim.report.counts["weight"] == 4
    path = str(sim.export(tmp_path / "out")["model"])
    simulated = sim.run(steps[0])
    for level in (LEVELS.ORT_DISABLE_ALL, LEVELS.ORT_ENABLE_ALL):
        for name, result in run(path, level, steps[0]).items():
            np.testing.assert_allclose(result, simulated[name], atol=1e-5)


def run(path: str, level: Any, feeds: dict[str, Any]) -> dict[str, Any]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return dict(zip([output.name for output in session.get_outputs()], session.run(None, feeds), strict=True))
