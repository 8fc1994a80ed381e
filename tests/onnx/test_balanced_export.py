"""A file with balanced channels runs in the integer kernels that it had, and Muls are all that is new."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from small_models import model, node, value

import isobit
from isobit.techniques import BalanceChannels


def mobile_block() -> onnx.ModelProto:
    """Expand, HardSwish, depthwise, HardSwish, project, with channels that differ by octaves."""
    rng = np.random.default_rng(0)
    sizes, again = (np.exp2(rng.uniform(-3, 3, 16)).astype(np.float32).reshape(-1, 1, 1, 1) for _ in range(2))
    constants = {
        "w1": rng.standard_normal((16, 4, 1, 1)).astype(np.float32) * sizes,
        "w2": rng.standard_normal((16, 1, 3, 3)).astype(np.float32) / sizes * again,
        "w3": rng.standard_normal((8, 16, 1, 1)).astype(np.float32) / again.reshape(1, -1, 1, 1),
    }
    nodes = [
        node("Conv", "x w1", "a"),
        node("HardSwish", "a", "b"),
        node("Conv", "b w2", "c", group=16, pads=[1, 1, 1, 1]),
        node("HardSwish", "c", "d"),
        node("Conv", "d w3", "y"),
    ]
    return model(nodes, [value("x", ["n", 4, 12, 12])], [value("y", ["n", 8, 12, 12])], constants, 17)


@pytest.mark.parametrize("target", ["default", "onnxruntime-cpu"])
def test_integer_kernels_stay_and_the_error_falls(tmp_path, target: str) -> None:
    data = [{"x": np.random.default_rng(seed).standard_normal((8, 4, 12, 12)).astype(np.float32)} for seed in range(3)]
    new = {"x": np.random.default_rng(9).standard_normal((8, 4, 12, 12)).astype(np.float32)}
    kernels, errors = {}, {}
    for name, techniques in {"plain": [], "balanced": [BalanceChannels(mul_gain=1, mul_share=0)]}.items():
        sim = isobit.quantize(
            mobile_block(), data, target=target, method="minmax", techniques=techniques, progress=False
        )
        file = sim.export(tmp_path / name, encodings_formats=())["model"]
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(tmp_path / f"{name}.onnx")
        options.add_session_config_entry("session.x64quantprecision", "1")
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        kernels[name] = Counter(item.op_type for item in onnx.load(tmp_path / f"{name}.onnx").graph.node)
        errors[name] = np.square(session.run(None, new)[0] - sim.run_float(new)["y"]).mean()
    assert kernels["plain"]["QLinearConv"] == kernels["balanced"]["QLinearConv"] == 3
    assert kernels["balanced"] - kernels["plain"] == Counter({"Mul": 4})
    assert errors["balanced"] < errors["plain"] / 4
