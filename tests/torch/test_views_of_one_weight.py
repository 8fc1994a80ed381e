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
    "two products": lambda x, w: x @ w - x.tanh() @ w,
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


#: Logits from rows (batch × 6, 16), the table (50, 16) and a bias (50); the file has a Transpose before the product.
HEADS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "product and sum": lambda x, table, bias: x @ table.t() + bias,
    "addmm": lambda x, table, bias: torch.addmm(bias, x, table.t()),
    "product of three axes": lambda x, table, bias: torch.matmul(x.reshape(-1, 2, 16), table.transpose(0, 1)) + bias,
}


class TiedHead(nn.Module):
    """A table that a head reads transposed, beside a bias of its own."""

    def __init__(self, head: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.table, self.layer, self.bias = nn.Embedding(50, 16), nn.Linear(16, 16), nn.Parameter(torch.randn(50))
        self.head = head

    def forward(self, ids: Tensor) -> Tensor:
        """Logits of every word."""
        return self.head(self.layer(self.table(ids)).relu().reshape(-1, 16), self.table.weight, self.bias)


@pytest.mark.parametrize("kind", HEADS)
def test_a_table_that_a_head_reads_transposed_is_written_with_both_grids(kind: str, tmp_path: Path) -> None:
    data = [torch.randint(50, (4, 6), generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    sim = isobit.quantize(TiedHead(HEADS[kind]).eval(), data, progress=False)
    assert sim.report.coverage.weights == 1
    (simulated,) = sim.run(data[0]).values()
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(str(sim.export(tmp_path)["model"]), options)
    (executed,) = session.run(None, {session.get_inputs()[0].name: data[0].numpy()})
    np.testing.assert_allclose(executed, simulated, atol=1e-5 * np.abs(simulated).max())
