"""What a written file takes: sizes that are open stay open, also where the example's is a number of the code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import isobit


class Groups(nn.Module):
    """The deviation within groups of up to four samples, as a further channel (StyleGAN's discriminator)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(9, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        samples, channels, height, width = x.shape
        group = min(4, samples)
        y = x.reshape(group, -1, 1, channels, height, width)
        y = (y - y.mean(0)).square().mean(0).mean([2, 3, 4]).reshape(-1, 1, 1, 1).repeat(group, 1, height, width)
        return self.last(torch.cat([x, y], 1))


@pytest.mark.parametrize("samples", [1, 2, 4, 8])
def test_an_example_as_large_as_a_number_of_the_code(samples: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Groups().eval()
    data = [torch.randn(samples, 3, 8, 8) for _ in range(2)]
    sim = isobit.QuantSim(module, data[0])
    sim.calibrate(data, "minmax", progress=False)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(str(sim.export(tmp_path)["model"]), options)
    for count in (2, 3, 4, 8):
        batch = torch.randn(count, 3, 8, 8)
        with torch.no_grad():
            np.testing.assert_allclose(sim.run_float(batch)["output"], module(batch), rtol=1e-4, atol=1e-5)
        (found,) = session.run(None, {"x": batch.numpy()})
        assert np.mean(np.abs(found - sim.run(batch)["output"]) < 1e-5) > 0.98


class Linear(nn.Module):
    """Attention without a softmax: three operands in one einsum, for which opt_einsum would look at all sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q = self.layer(x).view(*x.shape[:2], 2, 4)
        states = torch.einsum("blhd,blhm->blhdm", q, q).cumsum(1)
        return torch.einsum("blhd,blhdm,blh->blhm", q, states, q[..., 0])


def test_a_product_of_three_operands(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = Linear().eval(), torch.randn(4, 6, 8)
    sim = isobit.QuantSim(module, x)
    sim.calibrate([x], "minmax", progress=False)
    assert not sim.graph.notes
    session = onnxruntime.InferenceSession(str(sim.export(tmp_path)["model"]))
    y = torch.randn(3, 6, 8)
    np.testing.assert_allclose(sim.run_float(y)["output"], module(y).detach(), rtol=1e-4, atol=1e-5)
    assert session.run(None, {"x": y.numpy()})[0].shape == (3, 6, 2, 4)
