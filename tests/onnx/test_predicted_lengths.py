"""Lengths that a network predicts: the simulator and the written file in every session have the float model's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from small_models import constant, model, node, runtime, value

import isobit

WIDTH = 16


def encoder() -> list[onnx.NodeProto]:
    """Durations of the rows as two layers say them, and their sum."""
    return [
        *(node("Gather", "table tokens", "rows"), node("MatMul", "rows we", "he"), node("Tanh", "he", "hidden")),
        *(node("MatMul", "hidden wd", "hd"), node("Tanh", "hd", "bent"), node("MatMul", "bent wt", "log")),
        *(node("Exp", "log", "time"), node("Mul", "time pace", "scaled"), node("Ceil", "scaled", "whole")),
        *(node("ReduceSum", "whole", "total", keepdims=0), node("Cast", "total", "count", to=onnx.TensorProto.INT64)),
    ]


def regulator() -> list[onnx.NodeProto]:
    """Each row as often as it lasts, by positions: frames before the end of a row, less those before its begin."""
    return [
        *(node("CumSum", "whole first", "ends"), node("Sub", "ends whole", "begins")),
        *(node("Range", "zero count one", "frames"), node("Cast", "frames", "places", to=onnx.TensorProto.FLOAT)),
        node("Unsqueeze", "places last", "column"),
        *(node("Transpose", "ends", "e", perm=[1, 0]), node("Transpose", "begins", "b", perm=[1, 0])),
        *(node("Less", "column e", "is_before"), node("Less", "column b", "is_out"), node("Not", "is_out", "is_in")),
        *(node("And", "is_before is_in", "is_its"), node("Cast", "is_its", "path", to=onnx.TensorProto.FLOAT)),
        node("MatMul", "path hidden", "spread"),
    ]


def expanded() -> list[onnx.NodeProto]:
    return [
        *(node("Unsqueeze", "count first_axis", "counts"), node("Concat", "counts width", "shape", axis=0)),
        *(node("ReduceMean", "hidden", "mean", keepdims=1, axes=[0]), node("Expand", "mean shape", "spread")),
    ]


def resized() -> list[onnx.NodeProto]:
    return [
        *(node("Unsqueeze", "count first_axis", "counts"), node("Concat", "counts width", "shape", axis=0)),
        node("Resize", "hidden - - shape", "spread", mode="nearest"),
    ]


INTEGERS = {"zero": 0, "one": 1, "first": 0, "first_axis": [0], "last": [1], "width": [WIDTH]}
KINDS = {"range": regulator, "expand": expanded, "resize": resized}


@pytest.mark.parametrize("target", ["default", "onnxruntime-cpu"])
@pytest.mark.parametrize("kind", KINDS)
def test_lengths_are_those_of_the_float_model(kind: str, target: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    constants = {
        "table": rng.standard_normal((50, WIDTH)).astype(np.float32),
        **{name: (rng.standard_normal((WIDTH, WIDTH)) / 4).astype(np.float32) for name in ("we", "wd", "wo")},
        "wt": (rng.standard_normal((WIDTH, 1)) / 4).astype(np.float32),
        "pace": np.float32(5),
        **{name: constant(name, at, np.int64) for name, at in INTEGERS.items()},
    }
    nodes = [*encoder(), *KINDS[kind](), node("MatMul", "spread wo", "y")]
    tokens = value("tokens", ["n"], onnx.TensorProto.INT64)
    proto = model(nodes, [tokens], [value("y", ["t", WIDTH])], constants, 17)
    data = [{"tokens": rng.integers(0, 50, 40)} for _ in range(4)]
    sim = isobit.quantize(proto, data, target=target, progress=False)
    lengths = [runtime(proto, batch)["y"].shape for batch in data]
    assert [sim.run(batch)["y"].shape for batch in data] == lengths
    written = sim.export(tmp_path / "out")
    assert not [check.error for check in written.checks if check.error]
    file = onnx.load(written["model"])
    assert [runtime(file, batch)["y"].shape for batch in data] == lengths
