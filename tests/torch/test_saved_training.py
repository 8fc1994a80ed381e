"""A simulator that was trained is saved with what it has learned: weights, statistics, grids, and each adapter."""

from __future__ import annotations

import copy
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import isobit
from isobit.errors import ModelError
from isobit.techniques import CorrectBias, FoldBatchNorms

X = torch.randn(32, 2, 8, 8, generator=torch.Generator().manual_seed(1))
TOKENS = torch.randn(32, 16, generator=torch.Generator().manual_seed(2))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(128, 5)).eval()


class Tied(nn.Module):
    """One parameter in two layouts, and one in three parts."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Parameter(torch.randn(16, 16) * 0.2), nn.Linear(16, 8)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(x @ self.up) @ self.up.T
        hidden = hidden.unflatten(0, (-1, 4))
        return self.down(self.attention(hidden, hidden, hidden, need_weights=False)[0])


def train(sim: isobit.QuantSim, x: torch.Tensor, steps: int = 3) -> np.ndarray:
    model = sim.trainable()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-2)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x) - 1).square().mean().backward()
        optimizer.step()
    model.eval()
    return next(iter(sim.run(x).values()))


def output(sim: isobit.QuantSim, x: torch.Tensor) -> np.ndarray:
    return next(iter(sim.run(x).values()))


CASES: dict[str, tuple[Callable[[], nn.Module], torch.Tensor, bool]] = {
    "folded": (network, X, True),
    "batch norms that train": (network, X, False),
    "tied and in parts": (lambda: Tied().eval(), TOKENS, True),
}


@pytest.mark.parametrize("name", CASES)
def test_what_was_trained_comes_back(name: str, tmp_path: Path) -> None:
    make, x, folds = CASES[name]
    if folds:
        sim = isobit.quantize(make(), [x], weights="int4", progress=False, method="minmax")
    else:
        sim = isobit.QuantSim(make(), x, weights="int4")
        sim.calibrate([x], progress=False)
    sim.save(tmp_path / "untrained")
    expected = train(sim, x)
    sim.save(tmp_path / "sim")
    with zipfile.ZipFile(tmp_path / "untrained") as archive:
        names = archive.read("manifest.json").decode()
    assert "TrainedWeights" not in names
    loaded = isobit.load(tmp_path / "sim", make())
    np.testing.assert_array_equal(output(loaded, x), expected)
    np.testing.assert_array_equal(next(iter(loaded.run_float(x).values())), next(iter(sim.run_float(x).values())))
    assert dict(loaded.encodings) == dict(sim.encodings)
    later = train(loaded, x)
    loaded.save(tmp_path / "again")
    np.testing.assert_array_equal(output(isobit.load(tmp_path / "again", make()), x), later)


def test_edits_after_training_are_replayed_on_what_was_trained(tmp_path: Path) -> None:
    """The folding, and a bias that makes up for rounding, are of trained weights; training goes on after them."""
    sim = isobit.QuantSim(network(), X, weights="int4")
    sim.calibrate([X], "minmax", progress=False)
    train(sim, X)
    sim.apply(FoldBatchNorms())
    sim.apply(CorrectBias(), data=[X], progress=False)
    sim.calibrate([X], "minmax", progress=False)
    expected = train(sim, X)
    sim.save(tmp_path / "sim")
    loaded = isobit.load(tmp_path / "sim", network())
    np.testing.assert_array_equal(output(loaded, X), expected)
    np.testing.assert_allclose(loaded.run_float(X)["output"], sim.run_float(X)["output"], atol=1e-6)


def test_folding_keeps_what_was_learned_after_loading(tmp_path: Path) -> None:
    sim = isobit.QuantSim(network(), X, weights="int4")
    sim.calibrate([X], "minmax", progress=False)
    train(sim, X)
    sim.save(tmp_path / "sim")
    loaded = isobit.load(tmp_path / "sim", network())
    for each in (sim, loaded):
        each.apply(FoldBatchNorms())
    np.testing.assert_array_equal(output(loaded, X), output(sim, X))


def test_each_adapter_is_saved(tmp_path: Path) -> None:
    """Both are trained, the second is in the model, and a technique has run between."""
    peft = pytest.importorskip("peft")

    def wrapped() -> nn.Module:
        torch.manual_seed(0)
        base = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 4)).eval()
        model = peft.get_peft_model(base, peft.LoraConfig(r=4, lora_alpha=8, target_modules=["0", "2"]))
        model.add_adapter("second", peft.LoraConfig(r=2, target_modules=["0", "2"]))
        return model

    sim = isobit.quantize(wrapped(), TOKENS, weights="int4", activations="int8", progress=False, method="minmax")
    first = train(sim, TOKENS)
    sim.adapters.use("second")
    second = train(sim, TOKENS)
    sim.save(tmp_path / "sim")
    loaded = isobit.load(tmp_path / "sim", wrapped())
    assert loaded.adapters.active == "second"
    np.testing.assert_array_equal(output(loaded, TOKENS), second)
    loaded.adapters.use("default")
    np.testing.assert_array_equal(output(loaded, TOKENS), first)
    train(loaded, TOKENS)
    model = copy.deepcopy(wrapped())
    model.delete_adapter("second")
    with pytest.raises(ModelError, match="has the adapters default, second, and the model others"):
        isobit.load(tmp_path / "sim", model)


def test_a_calibrated_state_from_before_folding_says_so() -> None:
    """Its grids are of weights that are folded now; without them it is a float state, and is folded."""
    module = network()
    sim = isobit.QuantSim(module, X, weights="int4")
    sim.calibrate([X], "minmax", progress=False)
    own = sim.model.state_dict()
    sim.apply(FoldBatchNorms())
    sim.calibrate([X], "minmax", progress=False)
    expected = output(sim, X)
    for strict in (True, False):
        with pytest.raises(ModelError, match=r"'1\.bias' was folded into other weights.*leave out what begins with"):
            sim.model.load_state_dict(own, strict=strict)
    sim.model.load_state_dict({key: value for key, value in own.items() if not key.startswith("isobit_")})
    np.testing.assert_array_equal(output(sim, X), expected)


def test_training_without_trainable_is_watched() -> None:
    sim = isobit.QuantSim(network(), X)
    model = sim.model.train()
    with pytest.raises(ModelError, match="no quantizers.*calibrate first"):
        model(X)
    sim.calibrate([X], "minmax", progress=False)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    (model(X).sum() * torch.nan).backward()
    optimizer.step()
    with pytest.raises(ModelError, match=r"pass 2 of training: '0\.weight' holds NaN"):
        model(X)
