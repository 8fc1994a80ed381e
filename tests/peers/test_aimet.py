"""aimet-onnx 2.42 and isobit read each other's files to the same scales. Needs ISOBIT_PEERS_PYTHON, its interpreter.

python -m venv peers && peers/bin/pip install aimet-onnx==2.42.0
ISOBIT_PEERS_PYTHON=peers/bin/python pytest -m peers tests/peers
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import isobit
from isobit.graph import Weight

PYTHON = os.environ.get("ISOBIT_PEERS_PYTHON", "")
VERSIONS = ["1.0.0", "2.0.0"]
WEIGHTS = {"channels": "int8", "blocks": "int4 block=2", "lpbq": "int4 lpbq=2"}

pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(not PYTHON, reason="ISOBIT_PEERS_PYTHON does not name an interpreter with aimet-onnx"),
]


def network() -> onnx.ModelProto:
    """Conv, Relu, ConvTranspose, pooling and Flatten, MatMul, Gemm: each weight layout of ONNX."""
    rng = np.random.default_rng(7)
    shapes = {"conv.weight": (8, 4, 3, 3), "up.weight": (8, 6, 3, 3), "mm.weight": (6, 4), "fc.weight": (8, 4)}
    shapes |= {"conv.bias": (8,), "fc.bias": (8,)}
    weights = [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in shapes.items()]
    nodes = [
        helper.make_node("Conv", ["x", "conv.weight", "conv.bias"], ["c"], name="conv", pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("ConvTranspose", ["r", "up.weight"], ["u"], name="up"),
        helper.make_node("GlobalAveragePool", ["u"], ["g"], name="gap"),
        helper.make_node("Flatten", ["g"], ["f"], name="flat"),
        helper.make_node("MatMul", ["f", "mm.weight"], ["m"], name="mm"),
        helper.make_node("Gemm", ["m", "fc.weight", "fc.bias"], ["y"], name="fc", transB=1),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8])
    graph = helper.make_graph(nodes, "network", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def aimet(verb: str, model: Path, kind: str, encodings: Path) -> dict[str, Any]:
    """Run `aimet_side` and return its grids by name."""
    answer = encodings.with_suffix(f".{verb}.json")
    script = Path(__file__).with_name("aimet_side.py")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    arguments = [PYTHON, str(script), verb, str(model), kind, str(encodings), str(answer)]
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    grids: dict[str, Any] = json.loads(answer.read_text())
    return grids


def assert_same(sim: isobit.QuantSim, theirs: dict[str, Any], names: dict[str, str]) -> int:
    """Every site of isobit has their scales and offsets; returns how many scales were compared."""
    count = 0
    for site, encoding in sim.encodings.items():
        if encoding.spec.bits == 32:
            continue  # AIMET computes the scales of biases itself
        theirs_here = theirs[names.get(str(site), str(site))]
        scale = np.asarray(theirs_here["scale"]).astype(np.float32)
        ours = encoding.scale
        if isinstance(site, Weight) and str(site) == "mm.weight" and ours.ndim == 2:
            ours = ours.T  # AIMET keeps blocks in the layout of the ONNX weight
        np.testing.assert_array_equal(scale.reshape(-1), ours.reshape(-1), str(site))
        start = 0 if encoding.spec.dtype == "uint" else -encoding.spec.q_min
        offsets = -(encoding.zero_point.reshape(-1) + start)
        np.testing.assert_array_equal(np.asarray(theirs_here["offset"]).reshape(-1), offsets, str(site))
        count += scale.size
    return count


NAMES = {"relu": "r", "up": "u", "flat": "f", "mm": "m", "fc": "y"}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_aimet_reads_what_isobit_writes(kind: str, tmp_path: Path) -> None:
    sim = isobit.QuantSim(
        network(), weights=WEIGHTS[kind], overrides=None if kind == "channels" else {"up.weight": "int4"}
    )
    sim.calibrate(np.random.default_rng(1).standard_normal((8, 4, 8, 8)).astype(np.float32))
    paths = sim.export(tmp_path, encodings_formats=[f"aimet-{version}" for version in VERSIONS])
    for version in VERSIONS:
        theirs = aimet("load", paths["float_model"], kind, paths[f"aimet-{version}"])
        compared = assert_same(sim, {**theirs, "f": theirs.get("f", theirs["g"])}, NAMES)
        print(f"{kind}, {version}: {compared} scales of {len(theirs)} quantizers equal")


@pytest.mark.parametrize("kind", WEIGHTS)
def test_isobit_reads_what_aimet_writes(kind: str, tmp_path: Path) -> None:
    onnx.save(network(), tmp_path / "model.onnx")
    theirs = aimet("export", tmp_path / "model.onnx", kind, tmp_path / "aimet")
    for version in VERSIONS:
        sim = isobit.QuantSim(tmp_path / "model.onnx")
        report = sim.load_encodings(tmp_path / f"aimet-{version}.encodings", strict=kind == "channels", partial=False)
        assert not report.missing
        compared = assert_same(sim, {**theirs, "f": theirs.get("f", theirs["g"])}, NAMES)
        print(f"{kind}, {version}: {compared} scales of {len(theirs)} quantizers equal")
