"""The opened model is compared with the user's own module, which stays as it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import isobit
from isobit.errors import ModelError
from isobit.quantsim import QuantSim
from isobit_torch.backend import TorchBackend
from isobit_torch.model import TorchModel
from isobit_torch.open_module import open_module


class Net(nn.Module):
    """Two layers, dropout, and a count that forward changes."""

    def __init__(self, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(6, 8), activation or nn.ReLU(), nn.Linear(8, 3)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros(()))
        self.seen: Any = None

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        self.calls += 1
        self.seen = self.middle(self.first(x))
        return {"y": self.last(self.drop(self.seen))}


X = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))


def misread(monkeypatch: pytest.MonkeyPatch, activation: nn.Module) -> None:
    """The backend opens a module with another activation, whatever is given."""

    def opened(self: TorchBackend, model: nn.Module, example_inputs: Any = None) -> TorchModel:
        other = Net(activation).eval()
        other.load_state_dict(model.state_dict())
        result, given = open_module(other, example_inputs), open_module(model, example_inputs)
        result.given = given.given
        return result

    monkeypatch.setattr(TorchBackend, "open", opened)


@pytest.mark.parametrize("activation", [nn.GELU(), nn.Tanh(), nn.LeakyReLU(0.5)])
def test_a_module_that_is_misread_is_an_error(monkeypatch: pytest.MonkeyPatch, activation: nn.Module) -> None:
    misread(monkeypatch, activation)
    with pytest.raises(ModelError, match="output 'y' is .* dB from it .*first tensor that differs is 'middle'"):
        isobit.quantize(Net().eval(), [X], progress=False)
    assert isobit.quantize(Net().eval(), [X], progress=False, check=False).calibration is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_the_module_stays_as_it_is(dtype: torch.dtype) -> None:
    module = Net().to(dtype).train()
    module.last.eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    sim = isobit.quantize(module, [X.to(dtype)], progress=False, method="minmax")
    assert [part.training for part in module.modules()] == [True, True, True, False, True]
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert module.seen is None
    assert not [note for note in sim.report.notes if "as given" in note]


@pytest.mark.parametrize("change", ["step", "data", "load", "half"])
def test_a_module_that_changed_since_is_not_compared(change: str) -> None:
    module = Net().eval()
    sim = QuantSim(module, X)
    with torch.no_grad():
        if change == "step":
            module.first.weight.add_(1)
        elif change == "data":
            module.first.weight.data.mul_(2)
        elif change == "load":
            module.load_state_dict(Net().state_dict())
        else:
            module.half()
    sim.calibrate([X], progress=False)
    assert any("not compared with the model as given: its parameters have changed" in n for n in sim.report.notes)


def test_random_modules_are_not_compared() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x + torch.rand_like(x))

    sim = isobit.quantize(Noisy().eval(), [X], progress=False, method="minmax")
    assert any("different in every run" in note for note in sim.report.notes)


def test_a_module_that_keeps_a_tensor_is_copied_without_its_history() -> None:
    module = Net()
    expected = module.eval()(X)["y"].detach().numpy()
    assert not module.seen.is_leaf
    module.seen = {"maps": [module.seen]}
    sim = isobit.quantize(module, [X], progress=False, method="minmax")
    np.testing.assert_allclose(sim.run_float(X)["y"], expected, rtol=1e-4, atol=1e-5)
    assert module.seen["maps"][0].grad_fn is not None
