"""Smaller files: those that lose channels write down the sizes that are left, and no file says anything twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from small_models import constant, model, node, runtime, value

import isobit

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(-1, 12), (0, 12)])
def test_a_reshape_behind_a_pooling_counts_the_channels_that_are_left(shape: tuple[int, int]) -> None:
    """The two are one operation to the core; one behind a mean puts its axes back."""
    weights = {"w": (12, 3, 3, 3), "v": (12, 12, 3, 3), "h": (5, 12)}
    constants = {name: constant(name, RNG.normal(size=size)) for name, size in weights.items()}
    constants |= {"flat": constant("flat", shape, np.int64), "back": constant("back", (*shape, 1, 1), np.int64)}
    file = model(
        [
            node("Conv", "x w", "a", pads=[1, 1, 1, 1]),
            node("Relu", "a", "b"),
            node("Conv", "b v", "c", pads=[1, 1, 1, 1]),
            node("ReduceMean", "c", "m", axes=[2, 3], keepdims=0),
            node("Reshape", "m back", "r"),
            node("Mul", "c r", "g"),
            node("GlobalAveragePool", "g", "p"),
            node("Reshape", "p flat", "q"),
            node("Gemm", "q h", "y", transB=1),
        ],
        [value("x", ("n", 3, 8, 8))],
        [value("y", ("n", 5))],
        constants,
    )
    batch = {"x": RNG.normal(size=(7, 3, 8, 8)).astype(np.float32)}
    small = isobit.compress(file, batch, method="channel-pruning", keep=0.5, trials=1, progress=False)
    onnx.checker.check_model(small.model, full_check=True)
    sizes = {c.name: c.dims for c in small.model.graph.initializer}
    assert sizes["v"][0] == sizes["h"][1] < 12
    (found,) = runtime(small.model, batch).values()
    assert found.shape == (7, 5)


def test_a_file_says_types_of_constants_once(tmp_path: Path) -> None:
    """Of small layers with long names, most bytes of a file are names."""
    file = model(
        [node("MatMul", "x w", "h"), node("Relu", "h", "r"), node("MatMul", "r w", "y")],
        [value("x", ("n", 4))],
        [value("y", ("n", 4))],
        {"w": RNG.normal(size=(4, 4))},
    )
    sim = isobit.QuantSim(file, target="default")
    sim.calibrate([{"x": RNG.normal(size=(2, 4)).astype(np.float32)}], "minmax")
    sim.export(tmp_path)
    written = onnx.load(tmp_path / "model.qdq.onnx")
    onnx.checker.check_model(written, full_check=True)
    constants = {tensor.name for tensor in written.graph.initializer}
    said = {info.name for info in written.graph.value_info}
    assert constants
    assert said
    assert not constants & said
