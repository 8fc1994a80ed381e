"""Weights that float kernels read are stored as integers, and are floats once the file is loaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from small_models import model, node, value

import isobit
from isobit.quantsim import read_encodings

RNG = np.random.default_rng(0)
HIDDEN, FEATURES = 16, 32
X = RNG.standard_normal((5, 4, FEATURES)).astype(np.float32)


def _normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


RECURRENT = model(
    [node("LSTM", "x w r b", "all y cell", hidden_size=HIDDEN)],
    [value("x", [5, "n", FEATURES])],
    [value("y", [1, "n", HIDDEN])],
    {"w": _normal(1, 4 * HIDDEN, FEATURES), "r": _normal(1, 4 * HIDDEN, HIDDEN), "b": _normal(1, 8 * HIDDEN)},
)
PRODUCT = model(
    [node("MatMul", "x w", "h"), node("Tanh", "h", "t"), node("MatMul", "t v", "y")],
    [value("x", ["k", "n", FEATURES])],
    [value("y", ["k", "n", 8])],
    {"w": _normal(FEATURES, HIDDEN), "v": _normal(HIDDEN, 8)},
)


@pytest.mark.parametrize("network", [RECURRENT, PRODUCT], ids=["LSTM", "MatMul"])
@pytest.mark.parametrize(
    ("weights", "activations"),
    [
        ("int8", "int16"),
        ("uint8 asymmetric per-tensor", "uint16"),
        ("int4 block=8", "int16"),
        ("uint4 asymmetric block=8", "int16"),
        ("int16 per-tensor", "uint16"),
        ("int3 per-channel", "int16"),
    ],
)
def test_no_run_dequantizes_them(tmp_path: Path, network: onnx.ModelProto, weights: str, activations: str) -> None:
    sim = isobit.QuantSim(network, weights=weights, activations=activations)
    sim.calibrate({"x": X})
    path = sim.export(tmp_path)["model"]
    graph = onnx.load(path).graph
    constants = {tensor.name for tensor in graph.initializer}
    each_run = [n.input[0] for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in constants]
    assert not [name for name in each_run if name[0] in "wrv"]
    assert constants <= {name for reader in graph.node for name in reader.input}  # nothing is left over
    for entries in ({"session.disable_quant_qdq": "1"}, {}, {"session.x64quantprecision": "1"}):
        options = onnxruntime.SessionOptions()
        for key, entry in entries.items():
            options.add_session_config_entry(key, entry)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        np.testing.assert_array_equal(session.run(["y"], {"x": X})[0], sim.run({"x": X})["y"])
    again = read_encodings(path, sim)
    assert dict(again) == dict(sim.encodings)
    assert not again.unmapped
