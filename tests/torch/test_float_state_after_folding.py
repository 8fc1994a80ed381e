"""A state_dict of the float module goes into a simulator whose batch norms were folded: it is folded on the way in."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import isobit
from isobit.errors import GridWarning, ModelError
from isobit.techniques import FoldBatchNorms, SparsifyWeights

X = torch.randn(16, 4, 8, 8, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """Norms behind a layer with and without bias, behind a ReLU, in front of a layer, and beside no layer."""

    def __init__(self, seed: int, lowest: float = 0.5) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.alone = nn.BatchNorm2d(4)
        self.first, self.first_norm = nn.Conv2d(4, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.second, self.second_norm = nn.ConvTranspose2d(8, 6, 3, groups=2), nn.BatchNorm2d(6)
        self.last = nn.Linear(6 * 64, 5)
        for norm in (self.alone, self.first_norm, self.second_norm):
            nn.init.uniform_(norm.weight, lowest, 1.5)
            nn.init.normal_(norm.bias)
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.alone(x)) + x
        x = self.first_norm(torch.relu(self.first(x)))
        return self.last(self.second_norm(self.second(x)).flatten(1))


def folded() -> isobit.QuantSim:
    return isobit.quantize(Net(0).eval(), [X], progress=False, method="minmax")


def loaded(tmp_path: Path) -> isobit.QuantSim:
    folded().save(tmp_path / "sim")
    return isobit.load(tmp_path / "sim", Net(0).eval())


def trained() -> isobit.QuantSim:
    sim = folded()
    model = sim.trainable().train()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    model(X).square().mean().backward()
    optimizer.step()
    model.eval()
    sim.apply(FoldBatchNorms())
    return sim


def bare() -> isobit.QuantSim:
    sim = isobit.QuantSim(Net(0).eval(), X)
    sim.apply(FoldBatchNorms(scale_and_shift=False))
    return sim


def as_opened() -> isobit.QuantSim:
    return isobit.QuantSim(Net(0).eval(), X)


def grids_left(said: bool = True) -> contextlib.AbstractContextManager[object]:
    """Where weights come in that the grids do not fit, one warning names the next step."""
    said_so = pytest.warns(GridWarning, match=r"quantized weights do not fit their grids .*: calibrate\(data\) again")
    return said_so if said else contextlib.nullcontext()


@pytest.mark.parametrize("make", [folded, loaded, trained, bare, as_opened])
def test_a_float_state_is_folded_on_the_way_in(
    make: Callable[..., isobit.QuantSim], request: pytest.FixtureRequest
) -> None:
    sim = make(request.getfixturevalue("tmp_path")) if make is loaded else make()
    other, grids = Net(3).eval(), dict(sim.encodings)
    twin = copy.deepcopy(sim.model)
    with grids_left(bool(grids)):
        result = sim.model.load_state_dict(other.state_dict())
    assert not result.missing_keys
    assert not result.unexpected_keys
    wanted = other(X).detach().numpy()
    np.testing.assert_allclose(next(iter(sim.run_float(X).values())), wanted, atol=1e-4)
    assert dict(sim.encodings).keys() == grids.keys()
    with grids_left(bool(grids)):
        twin.load_state_dict(other.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(twin(X), sim.model(X))
    sim.calibrate([X], "minmax", progress=False)
    simulated = next(iter(sim.run(X).values()))
    assert 10 * np.log10(np.square(wanted).sum() / np.square(simulated - wanted).sum()) > 20


def test_weights_folded_by_loading_are_those_of_opening_them(tmp_path: Path) -> None:
    """Of a simulator saved after it, too."""
    sim = isobit.QuantSim(Net(0).eval(), X)
    sim.apply(FoldBatchNorms())
    sim.calibrate([X], "minmax", progress=False)
    with grids_left():
        sim.model.load_state_dict(Net(3).state_dict())
    sim.calibrate([X], "minmax", progress=False)
    wanted = isobit.QuantSim(Net(3).eval(), X)
    wanted.apply(FoldBatchNorms())
    wanted.calibrate([X], "minmax", progress=False)
    np.testing.assert_array_equal(sim.run(X)["output"], wanted.run(X)["output"])
    sim.save(tmp_path / "sim")
    again = isobit.load(tmp_path / "sim", Net(0).eval())
    np.testing.assert_array_equal(again.run(X)["output"], wanted.run(X)["output"])


def test_what_does_not_fit_is_said() -> None:
    sim, module = folded(), Net(3).eval()
    before = {name: value.clone() for name, value in sim.model.state_dict().items()}
    part = {name: value for name, value in module.state_dict().items() if name != "first_norm.running_var"}
    without_weight = {name: value for name, value in module.state_dict().items() if name != "first.weight"}
    resized = {**module.state_dict(), "first_norm.weight": torch.ones(7)}
    calibrated = isobit.QuantSim(module, X)
    calibrated.calibrate([X], "minmax", progress=False)
    equalized = isobit.QuantSim(Net(0).eval(), X)
    equalized.apply(FoldBatchNorms(), SparsifyWeights("50%", data_aware=False))
    turned = Net(3, lowest=-1.5).eval()
    for chosen, state, words in (
        (sim, part, r"'first_norm\.running_var' is missing"),
        (sim, without_weight, r"'first\.weight' is missing"),
        (sim, resized, r"'first_norm\.weight' has shape \(7,\)"),
        (sim, calibrated.model.state_dict(), "state of a simulator from before"),
        (sim, turned.state_dict(), "fold otherwise than the weights here did.*load_encodings"),
        (equalized, module.state_dict(), "a technique beside FoldBatchNorms has changed"),
    ):
        with pytest.raises(ModelError, match=words):
            chosen.model.load_state_dict(state)
        assert not chosen.simulation.model.inner.native.is_reloaded
    with pytest.raises(ModelError, match=r"'first\.weight' is missing"):  # what is held there is folded already
        sim.model.load_state_dict(without_weight, strict=False)
    for name, value in sim.model.state_dict().items():
        assert torch.equal(value, before[name])
