"""Views by strides, whose values depend on how a tensor lies in memory (the chunks of Longformer's attention)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import isobit


class Chunks(nn.Module):
    """Overlapping chunks of what a layer makes, with its axes in another order than in memory."""

    def __init__(self, axes: tuple[int, ...]) -> None:
        super().__init__()
        self.layer, self.axes = nn.Linear(6, 4), axes

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x).permute(self.axes)
        size, stride = list(y.shape), list(y.stride())
        axis = self.axes.index(1)
        size[axis], count = 4, (size[axis] - 4) // 2 + 1
        chunks = y.as_strided((count, *size), (2 * stride[axis], *stride))
        return (chunks * torch.arange(4.0).reshape([-1 if a == axis + 1 else 1 for a in range(4)])).sum(0)


@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 0, 2), (2, 0, 1)])
def test_they_see_the_same_in_the_simulator_and_the_file(axes: tuple[int, ...], tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = Chunks(axes).eval(), torch.randn(3, 8, 6)
    sim = isobit.QuantSim(module, x)
    sim.calibrate([x], progress=False)
    np.testing.assert_allclose(sim.run_float(x)["output"], module(x).detach(), rtol=1e-5, atol=1e-6)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(str(sim.export(tmp_path)["model"]), options)
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(found, sim.run(x)["output"], rtol=1e-5, atol=1e-5)
