"""Batch norms in training: measured anew, folded at the end, and what was learned stays."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import isobit
from isobit.encodings import Encoding
from isobit.errors import ModelError
from isobit.graph import Tensor, Weight
from isobit.quantsim import QuantSim
from isobit.techniques import FoldBatchNorms, ReestimateBatchNorms

X = torch.randn(32, 3, 6, 6, generator=torch.Generator().manual_seed(1))
Y = torch.randint(0, 4, (32,), generator=torch.Generator().manual_seed(2))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.first_norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.second, self.second_norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.last = nn.Linear(128, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first_norm(self.first(x)))
        return self.last((x + self.second_norm(self.second(x))).flatten(1))


def trained(weights: str = "int4", lowest: float = 0.5) -> QuantSim:
    torch.manual_seed(0)
    model = Net()
    for norm in (model.first_norm, model.second_norm):
        nn.init.uniform_(norm.weight, lowest, 1.5)
    sim = QuantSim(model.eval(), X, weights=weights, activations="uint8")
    sim.calibrate([X], "minmax", progress=False)
    network = sim.trainable()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    network.train()
    for _ in range(10):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(X), Y).backward()
        optimizer.step()
    network.eval()
    return sim


def output(sim: QuantSim) -> np.ndarray:
    return next(iter(sim.run(X).values()))


def sqnr(signal: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(np.square(signal).sum() / max(np.square(signal - other).sum(), 1e-20)))


def by_site(encodings: Mapping[object, Encoding]) -> dict[object, Encoding]:
    return dict(encodings)


def test_folding_at_the_end_keeps_what_was_learned(tmp_path) -> None:
    """Scales of weights are multiplied by the factors of their channels; a norm's grid goes to its layer."""
    sim = trained()
    before, learned, model = output(sim), by_site(sim.encodings), sim.model
    norm = {n: model.get_parameter(f"second_norm.{n}").detach().numpy() for n in ("weight", "bias")}
    variance = model.get_buffer("second_norm.running_var").numpy()
    report = sim.apply(FoldBatchNorms())[0]
    assert len(report.changed) == 2
    after = by_site(sim.encodings)
    assert after[Tensor("second")] == learned[Tensor("second_norm")]
    assert after[Tensor("relu")] == learned[Tensor("relu")]
    factors = np.abs(norm["weight"] / np.sqrt(variance + 1e-5))
    np.testing.assert_allclose(
        after[Weight("second.weight")].scale, learned[Weight("second.weight")].scale * factors, rtol=1e-5
    )
    assert sqnr(before, output(sim)) > 45
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(sim.export(tmp_path)["model"]))
    assert sqnr(output(sim), session.run(None, {session.get_inputs()[0].name: X.numpy()})[0]) > 40


def test_a_state_of_before_is_loaded_after() -> None:
    """The float module's names: what training saved goes into a folded simulator by folding it too."""
    sim = trained()
    state = {name: value for name, value in sim.model.state_dict().items() if not name.startswith("isobit_")}
    module = Net()
    module.load_state_dict(state)
    wanted = next(iter(sim.run_float(X).values()))
    np.testing.assert_allclose(module.eval()(X).detach().numpy(), wanted, atol=1e-4)
    sim.apply(FoldBatchNorms())
    np.testing.assert_allclose(next(iter(sim.run_float(X).values())), wanted, atol=1e-4)


def test_measuring_anew_keeps_what_was_learned() -> None:
    sim = trained()
    learned = by_site(sim.encodings)
    statistics = sim.model.get_buffer("second_norm.running_mean").clone()
    sim.apply(ReestimateBatchNorms(), data=[X] * 2, progress=False)
    assert by_site(sim.encodings) == learned
    assert not torch.equal(statistics, sim.model.get_buffer("second_norm.running_mean"))
    before = output(sim)
    sim.apply(FoldBatchNorms())
    assert sqnr(before, output(sim)) > 45


def test_channels_that_are_turned_over_lose_a_step_at_the_end() -> None:
    """A weight at -8 becomes one at 7, where the factor of its channel is below 0."""
    sim = trained(lowest=-1.5)
    before = output(sim)
    sim.apply(FoldBatchNorms())
    assert sqnr(before, output(sim)) > 22


def test_frozen_norms_train_what_will_run() -> None:
    """Their statistics stay, and training mode computes what evaluation does; weights of the norm still train."""
    sim = trained()
    network = sim.model
    statistics = {name: value.clone() for name, value in network.named_buffers() if "running" in name}
    assert not torch.allclose(network.train()(X), network.eval()(X), atol=1e-3)
    network.load_state_dict(statistics, strict=False)
    network.freeze_batch_norms()
    assert torch.equal(network.train()(X), network.eval()(X))
    network.train()
    nn.functional.cross_entropy(network(X), Y).backward()
    assert network.get_parameter("first_norm.weight").grad.abs().sum() > 0
    for name, value in statistics.items():
        assert torch.equal(network.get_buffer(name), value)


def test_a_grid_for_the_whole_weight_follows_the_folded_values() -> None:
    sim = trained("int8 per-tensor")
    before, learned = output(sim), by_site(sim.encodings)
    sim.apply(FoldBatchNorms())
    assert by_site(sim.encodings)[Tensor("second")] == learned[Tensor("second_norm")]
    assert sqnr(before, output(sim)) > 20


def test_what_was_only_calibrated_is_calibrated_again() -> None:
    sim = QuantSim(Net().eval(), X)
    sim.calibrate([X], "minmax", progress=False)
    sim.apply(FoldBatchNorms())
    assert sim.calibration is None


@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_saved_simulator_goes_on_counting(momentum: float | None, tmp_path: Path) -> None:
    """Without a momentum statistics are means over all batches: a count from 0 would forget those before."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, momentum=momentum), nn.ReLU()).eval()
    batches = torch.randn(4, 8, 2, 6, 6) + torch.arange(4.0).reshape(4, 1, 1, 1, 1)
    sim = isobit.QuantSim(module, batches[0])
    sim.calibrate([batches[0]])
    model = sim.trainable().train()
    for batch in batches[:3]:
        model(batch)
    sim.save(tmp_path / "sim.isobit")
    loaded = isobit.load(tmp_path / "sim.isobit", module)
    other = loaded.trainable().train()
    names = ["1.num_batches_tracked", "1.running_mean", "1.running_var"]
    assert int(other.state_dict()[names[0]]) == 3
    for trained in (model, other):
        trained(batches[3])
    for name in names:
        torch.testing.assert_close(other.state_dict()[name], model.state_dict()[name])
    changed = tmp_path / "changed.isobit"
    with zipfile.ZipFile(tmp_path / "sim.isobit") as old, zipfile.ZipFile(changed, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name).replace(b'"batches_seen": {"1": 3}', b'"batches_seen": {"1": -3}'))
    with pytest.raises(ModelError, match="batches_seen: must be an object of whole numbers"):
        isobit.load(changed, module)
