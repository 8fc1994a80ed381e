"""Code that asks whether it is captured. The module as it runs is the reference."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import isobit

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


class Asks(nn.Module):
    """Leaves a factor out where it is captured, as RecurrentGemma does."""

    def __init__(self, asks: Callable[[], bool], factor: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.asks, self.factor = nn.Linear(8, 8), asks, factor

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        if not self.asks():
            assert x.shape[-1] == 8
            x = x * self.factor
        return x.relu()


# The last one was bound before anything is captured.
QUESTIONS: dict[str, Callable[[], bool]] = {
    "torch.compiler.is_compiling()": lambda: torch.compiler.is_compiling(),
    "torch.compiler.is_exporting()": lambda: torch.compiler.is_exporting(),
    "by name": torch.compiler.is_compiling,
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_what_is_captured_is_what_runs(question: str) -> None:
    model = Asks(QUESTIONS[question], 3.0).eval()
    plain = torch.compiler.is_compiling, torch.compiler.is_exporting
    sim = isobit.quantize(model, [X], progress=False)
    (found,) = sim.run_float(X).values()
    np.testing.assert_allclose(found, model(X).detach().numpy(), rtol=1e-5, atol=1e-6)
    assert any(question.replace("by name", "torch.compiler.is_compiling()") in note for note in sim.graph.notes)
    assert (torch.compiler.is_compiling, torch.compiler.is_exporting) == plain


def test_torch_compile_still_knows_who_asks() -> None:
    """A module that compiles a part of itself makes torch.compile look its functions up while it is captured."""

    class Compiles(Asks):
        def forward(self, x: Tensor) -> Tensor:
            return torch.compile(torch.relu, backend="eager")(super().forward(x))

    model = Compiles(QUESTIONS["torch.compiler.is_compiling()"], 1.0).eval()
    isobit.QuantSim(model, X)
    torch._dynamo.reset()
    other = Asks(QUESTIONS["torch.compiler.is_compiling()"], 1.0).eval()
    compiled = torch.compile(other, backend="eager", fullgraph=True)
    assert torch.equal(compiled(X), other(X))


def test_a_question_that_changes_nothing_gets_its_answer() -> None:
    """Such as one before a check of values, which no capture can have."""

    class Checks(Asks):
        def forward(self, x: Tensor) -> Tensor:
            if not self.asks() and x.abs().max().item() > 100:
                raise ValueError("too large")
            return self.layer(x)

    sim = isobit.QuantSim(Checks(QUESTIONS["torch.compiler.is_compiling()"], 1.0).eval(), X)
    assert not sim.graph.notes


def test_a_random_module_is_captured_as_before() -> None:
    class Noise(Asks):
        def forward(self, x: Tensor) -> Tensor:
            noise = torch.zeros_like(x) if self.asks() else torch.randn_like(x)
            return self.layer(x) + noise

    sim = isobit.QuantSim(Noise(QUESTIONS["torch.compiler.is_compiling()"], 1.0).eval(), X)
    assert not any("torch.compiler" in note for note in sim.graph.notes)
