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


def test_blocks_of_one_value_stay_behind_a_quantizer(tmp_path: Path) -> None:
    """Sizes of such blocks do not say which axis they divide, so that they could not be read back."""
    sim = isobit.QuantSim(PRODUCT, weights="int4 block=1", activations="int16")
    sim.calibrate({"x": X})
    assert dict(read_encodings(sim.export(tmp_path)["model"], sim)) == dict(sim.encodings)


def test_weights_of_many_bytes_stay_behind_a_quantizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is that of all weights together."""
    monkeypatch.setattr("isobit_onnx.export.fold_at_load._MOST", FEATURES * HIDDEN + HIDDEN * 8 - 1)
    sim = isobit.QuantSim(PRODUCT, weights="int8", activations="int16")
    sim.calibrate({"x": X})
    path = sim.export(tmp_path)["model"]
    assert not [n for n in onnx.load(path).graph.node if n.op_type == "Mul"]
    assert dict(read_encodings(path, sim)) == dict(sim.encodings)


@pytest.mark.parametrize(
    "factors",
    [
        {"s": (FEATURES, 8)},  # for each value
        {"s": (8,)},  # of fewer axes
        {"s": (1, 8), "z": ()},  # a zero point for all
        {"s": (1, 8), "z": (1, 8)},  # between integers, and factors below zero
        {"s": (FEATURES // 4, 4, 8), "z": (FEATURES // 4, 4, 8), "sizes": (FEATURES // 4, 4, 8)},
    ],
    ids=lambda factors: "-".join(map(str, factors["s"])),
)
def test_products_of_other_tools_with_other_factors_are_nothing_quantized(
    tmp_path: Path, factors: dict[str, tuple[int, ...]]
) -> None:
    """Integers that other products make floats of are no weight on a grid of DequantizeLinear, and no obstacle."""
    levels = RNG.integers(-9, 9, (FEATURES, 8)).astype(np.int8)
    constants = {
        "i": onnx.numpy_helper.from_array(levels, "i"),
        "shape": onnx.numpy_helper.from_array(np.array([FEATURES, 8]), "shape"),
        "sizes": onnx.numpy_helper.from_array(np.array(factors.get("sizes", (FEATURES, 8))), "sizes"),
        "grid": onnx.numpy_helper.from_array(np.array(0.02, np.float32), "grid"),
        "zero": onnx.numpy_helper.from_array(np.array(128, np.uint8), "zero"),
        "s": _normal(*factors["s"]),
        "z": _normal(*factors.get("z", ())),
    }
    nodes = [
        node("QuantizeLinear", "x grid zero", "q"),
        node("DequantizeLinear", "q grid zero", "d"),
        node("Cast", "i", "c", to=1),
        *([node("Reshape", "c sizes", "b")] if "sizes" in factors else []),
        node("Sub", ("b" if "sizes" in factors else "c") + " z", "o"),
        node("Mul", ("o" if "z" in factors else "c") + " s", "p"),
        node("Reshape", "p shape", "w"),
        node("MatMul", "d w", "y"),
    ]
    path = tmp_path / "of_another_tool.onnx"
    onnx.save(model(nodes, [value("x", ["n", FEATURES])], [value("y", ["n", 8])], constants), path)
    assert [str(site) for site in read_encodings(path)] == ["x"]
