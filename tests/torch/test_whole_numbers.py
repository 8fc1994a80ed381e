"""Functions that PyTorch takes of whole numbers and truth values, and ONNX of floats alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import isobit

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    **{name: getattr(torch, name) for name in ("sqrt", "rsqrt", "log2")},
    "softmax": lambda n: n.softmax(-1, dtype=torch.float32),
    "a share of truth values": lambda n: (n > 2) / n,
    "a quotient of whole numbers": lambda n: n / (n + 1),
    "a quotient of a whole number and a float": lambda n: n / 3.5,
}


class OfWholeNumbers(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.function = nn.Linear(8, 8), function

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.function((5 * x).long().abs() + 1)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_they_become_floats_first(name: str, tmp_path: Path) -> None:
    model, x = OfWholeNumbers(FUNCTIONS[name]).eval(), torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(x).numpy()
    sim = isobit.quantize(model, x, progress=False)
    np.testing.assert_allclose(sim.run_float(x)["output"], expected, atol=1e-5)
    np.testing.assert_allclose(sim.run(x)["output"], expected, atol=0.1 * np.abs(expected).max())
    session = onnxruntime.InferenceSession(str(sim.export(tmp_path)["model"]))
    (written,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(written, expected, atol=0.1 * np.abs(expected).max())
