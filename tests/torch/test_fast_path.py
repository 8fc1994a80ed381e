"""torch's fast path of Transformer layers: what it leaves out at padded positions is computed, and that is said."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import isobit


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        return self.head(self.body(x, src_key_padding_mask=padding))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("padded", [2, 0])
def test_padded_positions(padded: int) -> None:
    torch.manual_seed(0)
    module, padding = Tagger().eval(), torch.zeros(4, 6, dtype=torch.bool)
    padding[0, 6 - padded :] = True
    batch = (torch.randn(4, 6, 8), padding)
    sim = isobit.QuantSim(module, batch)
    sim.calibrate([batch], "minmax", progress=False)  # compares with the module as given
    assert any("zeros at padded positions" in note for note in sim.graph.notes) == bool(padded)
    found = sim.run_float(batch)["output"]
    np.testing.assert_allclose(found, module(*batch).detach(), rtol=1e-4, atol=1e-5)  # with gradients: all positions
    with torch.no_grad():
        fast = module(*batch).numpy()
    valid = ~padding.numpy()
    np.testing.assert_allclose(found[valid], fast[valid], rtol=1e-4, atol=1e-5)
    assert torch.backends.mha.get_fastpath_enabled()
