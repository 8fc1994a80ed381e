"""Dropout, which a captured program lacks: it is there in training, as the module has it, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from isobit.quantsim import QuantSim
from isobit_torch.backend import TorchBackend


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.dropout = nn.Linear(12, 36), nn.Linear(12, 12), 0.5

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        q, k, v = (t.unflatten(-1, (3, 4)).transpose(1, 2) for t in self.qkv(tokens).chunk(3, -1))
        mixed = functional.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        return self.out(mixed.transpose(1, 2).flatten(2))


class MultiHead(nn.Module):
    def __init__(self, need_weights: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(12, 3, dropout=0.5, batch_first=True)
        self.need_weights = need_weights

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.attention(tokens, tokens, tokens, need_weights=self.need_weights)[0]


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(12, 12)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return functional.dropout(self.fc(tokens), 0.5 if self.training else 0.0, self.training)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (SelfAttention(), "scaled_dot_product_attention.dropout"),
        (nn.Sequential(SelfAttention()), "0.scaled_dot_product_attention.dropout"),
        (MultiHead(need_weights=False), "attention.scaled_dot_product_attention.dropout"),
        (MultiHead(need_weights=True), "attention.dropout"),
        (Functional(), "dropout"),
    ],
    ids=["sdpa", "nested", "multi-head", "multi-head with weights", "functional"],
)
def test_dropout_of_training(module: nn.Module, name: str) -> None:
    """`dropout_p` is 0 in the evaluation mode in which a model is captured; train() brings the real one back."""
    tokens = torch.randn(4, 6, 12)
    sim = QuantSim(module.eval(), tokens)
    sim.calibrate([tokens], "minmax")
    dropout = next(node for node in sim.model.graph.nodes if node.op == "call_module" and node.meta.get("name") == name)
    assert sim.model.get_submodule(dropout.target).probability == 0.5
    assert not any(m.training for m in module.modules())
    with torch.no_grad():
        np.testing.assert_allclose(sim.run_float(tokens)["output"], module(tokens).numpy(), atol=1e-5)
        assert torch.equal(sim.model(tokens), sim.model(tokens))
        sim.model.train()
        assert not torch.equal(sim.model(tokens), sim.model(tokens))
        torch.manual_seed(3)
        outputs = torch.stack([sim.model(tokens) for _ in range(64)])
    assert float(outputs.std(0).mean()) > 0.02  # every token varies


def test_opening_leaves_the_random_numbers_alone() -> None:
    module = SelfAttention().eval()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    TorchBackend().open(module, torch.zeros(2, 6, 12))
    assert torch.equal(torch.rand(3), expected)
