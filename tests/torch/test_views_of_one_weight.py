"""Layers that see one parameter in ways of their own (tied autoencoders): each has its grid, in the file too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d, conv_transpose1d, linear

import isobit

BATCHES = [torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]

#: The second layer, in rows of channels last.
SECOND: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "linear, transposed": lambda x, w: linear(x, w.t()),
    "convolution": lambda x, w: conv1d(x.transpose(1, 2), w[:, :, None]).transpose(1, 2),
    "transposed convolution": lambda x, w: conv_transpose1d(x.transpose(1, 2), w.view(16, 16, 1)).transpose(1, 2),
}


class Tied(nn.Module):
    """Two layers of one parameter."""

    def __init__(self, second: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, 16, generator=torch.Generator().manual_seed(7)) / 4)
        self.second = second

    def forward(self, x: Tensor) -> Tensor:
        """Two products with a Relu between."""
        return self.second(linear(x, self.weight).relu(), self.weight)


@pytest.mark.parametrize("kind", SECOND)
def test_each_layer_keeps_its_view(kind: str, tmp_path: Path) -> None:
    module = Tied(SECOND[kind]).eval()
    sim = isobit.quantize(module, BATCHES, progress=False)  # corrects biases, which makes layers anew
    (simulated,) = sim.run(BATCHES[0]).values()
    expected = module(BATCHES[0]).detach().numpy()
    assert np.square(simulated - expected).sum() < 1e-3 * np.square(expected).sum()
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(str(sim.export(tmp_path)["model"]), options)
    (executed,) = session.run(None, {session.get_inputs()[0].name: BATCHES[0].numpy()})
    np.testing.assert_allclose(executed, simulated, atol=1e-5 * np.abs(simulated).max())
