"""Numbers beside the data, and memories that are empty at first, as they come to a model in use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from small_models import constant, model, node, runtime, value

import isobit

RNG = np.random.default_rng(0)
WEIGHTS = {name: RNG.standard_normal((16, 16)).astype(np.float32) / 4 for name in ("wq", "wk", "wv")}
DECODER = model(
    [
        *(node("MatMul", "x wq", "q"), node("MatMul", "x wk", "k"), node("MatMul", "x wv", "v")),
        *(node("Concat", "past_k k", "kk", axis=1), node("Concat", "past_v v", "vv", axis=1)),
        *(node("Transpose", "kk", "kt", perm=[0, 2, 1]), node("MatMul", "q kt", "s")),
        *(node("Softmax", "s", "p", axis=-1), node("MatMul", "p vv", "y")),
    ],
    [value("x", ["b", "t", 16]), value("past_k", ["b", "past", 16]), value("past_v", ["b", "past", 16])],
    [value("y", ["b", "t", 16]), value("kk", ["b", "all", 16]), value("vv", ["b", "all", 16])],
    WEIGHTS,
)


def _step(now: int, past: int) -> dict[str, np.ndarray]:
    shapes = {"x": (2, now, 16), "past_k": (2, past, 16), "past_v": (2, past, 16)}
    return {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("target", ["default", "onnxruntime-cpu-transformer"])
@pytest.mark.parametrize("steps", [[(4, 0), (1, 4)], [(1, 4), (4, 0)], [(4, 0)]])
def test_a_decoder_begins_without_a_memory(steps: list[tuple[int, int]], target: str, tmp_path: Path) -> None:
    batches = [_step(*step) for step in steps]
    sim = isobit.quantize(DECODER, batches, target=target, progress=False)
    path = sim.export(tmp_path)["model"]
    for batch in batches:
        exact, simulated = runtime(DECODER, batch)["y"], sim.run(batch)["y"]
        assert np.linalg.norm(exact - simulated) < 0.05 * np.linalg.norm(exact)
        written = runtime(onnx.load(path), batch)["y"]
        assert np.linalg.norm(written - simulated) < 0.02 * np.linalg.norm(exact)


@pytest.mark.parametrize("rate", [16000, np.int64(16000), np.array(16000), np.array([16000])])
def test_a_number_beside_the_samples(rate: object) -> None:
    shape = [1] if np.ndim(rate) else []
    proto = model(
        [
            *(node("MatMul", "x wq", "h"), node("Equal", "sr k", "e")),
            *(node("Cast", "e", "f", to=1), node("Mul", "h f", "y")),
        ],
        [value("x", ["n", 16]), value("sr", shape, TensorProto.INT64)],
        [value("y", ["n", 16])],
        {"wq": WEIGHTS["wq"], "k": constant("k", 16000, np.int64)},
    )
    x = RNG.standard_normal((64, 16)).astype(np.float32)
    sim = isobit.quantize(proto, {"x": x, "sr": rate}, progress=False)
    exact = x @ WEIGHTS["wq"]
    assert np.linalg.norm(sim.run({"x": x, "sr": rate})["y"] - exact) < 0.02 * np.linalg.norm(exact)
