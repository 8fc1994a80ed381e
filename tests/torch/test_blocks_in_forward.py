"""Blocks around calls in forward: branches of torch.cond, autocast, gradients on and off."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._higher_order_ops import while_loop

import isobit
from isobit.errors import ModelError

Block = Callable[[nn.Module, Tensor], Tensor]


class Body(nn.Module):
    def __init__(self, block: Block) -> None:
        super().__init__()
        self.layer, self.block = nn.Linear(6, 6), block

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.block(self, self.layer(x)))


def chosen(self: nn.Module, y: Tensor) -> Tensor:
    return torch.cond(y.sum() > 0, lambda a: self.layer(a) * 2, lambda a: a - 1, (y,))


def two_results(self: nn.Module, y: Tensor) -> Tensor:
    a, b = torch.cond(y.sum() > 0, lambda a, b: (a * 2, b + 0), lambda a, b: (a - 1, b + 1), (y, y.abs()))
    return a + b


def nested_choice(self: nn.Module, y: Tensor) -> Tensor:
    def inner(a: Tensor) -> Tensor:
        return torch.cond(a.amax() > 1, lambda v: v.sigmoid(), lambda v: v.tanh(), (a,))

    return torch.cond(y.sum() > 0, inner, lambda a: a - 1, (y,))


def autocast(self: nn.Module, y: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = self.layer(y)
    return z.float()


def autocast_off_inside(self: nn.Module, y: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = self.layer(y)
        with torch.autocast("cpu", enabled=False):
            return self.layer(z.float())


@torch.autocast("cpu", dtype=torch.float16)
def _in_half(layer: nn.Module, y: Tensor) -> Tensor:
    return layer(y)


def autocast_by_name(self: nn.Module, y: Tensor) -> Tensor:
    return _in_half(self.layer, y).float() * 2


def gradients_on(self: nn.Module, y: Tensor) -> Tensor:
    with torch.enable_grad():
        z = self.layer(y)
    return z + y


def gradients_off(self: nn.Module, y: Tensor) -> Tensor:
    with torch.no_grad():
        return self.layer(y)


BLOCKS = (
    chosen, two_results, nested_choice, autocast, autocast_off_inside, autocast_by_name, gradients_on, gradients_off,
)  # fmt: skip


@pytest.mark.parametrize("block", BLOCKS)
def test_the_opened_model_is_the_given_one(block: Block) -> None:
    torch.manual_seed(0)
    module = Body(block).eval()
    sim = isobit.QuantSim(module, torch.randn(4, 6))
    batches = [torch.randn(4, 6) for _ in range(3)]
    sim.calibrate(batches, progress=False)
    is_half = block.__name__.startswith("autocast")
    assert any("torch.autocast" in note for note in sim.graph.notes) == is_half
    for x in batches:  # both branches
        with torch.no_grad():
            found, wanted = sim.run_float(x)["output"], module(x).numpy()
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=3e-2 if is_half else 1e-5)
    assert torch.autocast.__enter__.__name__ == "__enter__"


def test_the_callers_own_autocast_is_left_out() -> None:
    module, x = Body(gradients_off).eval(), torch.randn(4, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sim = isobit.QuantSim(module, x)
    np.testing.assert_allclose(sim.run_float(x)["output"], module(x).detach().numpy(), rtol=1e-5, atol=1e-5)


def loop(self: nn.Module, y: Tensor) -> Tensor:
    return while_loop(lambda i, a: i < 3, lambda i, a: (i + 1, a * 2), (torch.tensor(0), y))[1]


def gradients_taken(self: nn.Module, y: Tensor) -> Tensor:
    return torch.autograd.grad(self.layer(y).sum(), y)[0]


@pytest.mark.parametrize(
    ("block", "says"), [(loop, "a loop with a fixed number"), (gradients_taken, "takes gradients")]
)
def test_what_has_no_form_is_refused_by_its_line(block: Block, says: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelError, match=rf"cannot be captured at .*{block.__name__[:4]}.*{says}"):
        isobit.QuantSim(Body(block).eval(), torch.randn(4, 6))
    assert not capfd.readouterr().err
