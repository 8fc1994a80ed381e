"""The probabilities of a long attention are small: their grid follows the data."""

from __future__ import annotations

import numpy as np
import pytest
from small_models import model, node, runtime, value

import isobit


@pytest.mark.parametrize("keys", [64, 197, 512, 1024])
@pytest.mark.parametrize("target", ["default", "onnxruntime-cpu", "onnxruntime-cpu-transformer"])
def test_quality_does_not_fall_with_the_length(keys: int, target: str) -> None:
    rng = np.random.default_rng(keys)
    weights = {name: (rng.standard_normal((32, 32)) / 32**0.5).astype(np.float32) for name in ("wq", "wk", "wv", "wo")}
    nodes = [
        *(node("MatMul", "x wq", "q"), node("MatMul", "x wk", "k"), node("MatMul", "x wv", "v")),
        *(node("Transpose", "k", "kt", perm=[0, 2, 1]), node("MatMul", "q kt", "s")),
        *(node("Mul", "s scale", "t"), node("Softmax", "t", "p", axis=-1)),
        *(node("MatMul", "p v", "o"), node("MatMul", "o wo", "y")),
    ]
    inputs, outputs = [value("x", ["n", "k", 32])], [value("y", ["n", "k", 32])]
    proto = model(nodes, inputs, outputs, {**weights, "scale": np.float32(32**-0.5)})
    x = rng.standard_normal((4, keys, 32)).astype(np.float32)
    sim = isobit.quantize(proto, {"x": x}, target=target, progress=False)
    exact = runtime(proto, {"x": x})["y"].astype(np.float64)
    noise = sim.run({"x": x})["y"] - exact
    assert 10 * np.log10((exact**2).sum() / (noise**2).sum()) > 24
