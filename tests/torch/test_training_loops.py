"""Loops around a simulator that trains: compiled, averaged, recomputed, and taken up again where they were left."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

import isobit
from isobit.quantsim import QuantSim

X = torch.randn(32, 2, 8, 8, generator=torch.Generator().manual_seed(1))
Y = torch.arange(32) % 5


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(128, 5)).eval()


def simulator(folds: bool = True) -> QuantSim:
    if folds:
        return isobit.quantize(network(), [X], weights="int4", method="minmax", progress=False)
    sim = QuantSim(network(), X, weights="int4")
    sim.calibrate([X], "minmax", progress=False)
    return sim


def train(
    run: Callable[[torch.Tensor], torch.Tensor],
    optimizer: torch.optim.Optimizer,
    steps: int,
    after: Callable[[], None] = lambda: None,
) -> list[float]:
    """Losses of steps over half of the images, turn about."""
    losses = []
    for step in range(steps):
        part = slice(16 * (step % 2), 16 * (step % 2) + 16)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(run(X[part]), Y[part])
        loss.backward()
        optimizer.step()
        after()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_simulator_trains_as_it_does_without() -> None:
    """In training mode, with batch norms and learned grids; steps behind the first two compile nothing anew."""
    torch._dynamo.reset()
    graphs = torch._dynamo.utils.counters["stats"]
    losses, outputs = [], []
    for compiler in (lambda model: model, lambda model: torch.compile(model, backend="aot_eager")):
        sim = simulator(folds=False)
        model = sim.trainable().train()
        run, optimizer = compiler(model), torch.optim.Adam(model.parameters(), 1e-2)
        first = train(run, optimizer, 2)
        count = graphs["unique_graphs"]
        losses.append(first + train(run, optimizer, 4))
        assert graphs["unique_graphs"] == count
        model.eval()
        outputs.append(sim.run(X)["output"])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    assert count > 0
    assert losses[0][-1] < losses[0][0]
    noise = np.square(outputs[1] - outputs[0]).mean()
    assert noise <= 1e-4 * np.square(outputs[0]).mean()


@pytest.mark.parametrize("folds", [True, False])
@pytest.mark.parametrize("saved", ["calibrated", "in the middle"])
def test_training_goes_on_where_it_was_left(folds: bool, saved: str, tmp_path: Path) -> None:
    """The file of `sim.save` with the states of model and optimizer: the same bits as without the break."""
    sim = simulator(folds)
    if saved == "calibrated":
        sim.save(tmp_path / "sim")
    model = sim.trainable().train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    train(model, optimizer, 4)
    if saved == "in the middle":
        sim.save(tmp_path / "sim")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    train(model, optimizer, 4)

    loaded = isobit.load(tmp_path / "sim", network())
    again = loaded.trainable().train()
    resumed = torch.optim.Adam(again.parameters(), 1e-2)
    state = torch.load(tmp_path / "state.pt")
    again.load_state_dict(state["model"])
    resumed.load_state_dict(state["optimizer"])
    train(again, resumed, 4)
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert dict(loaded.encodings) == dict(sim.encodings)


def test_a_moving_average_has_the_grids_too(tmp_path: Path) -> None:
    """Each parameter is the average of what it was, and `sim` runs and writes it."""
    sim = simulator()
    model = sim.trainable().train()
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.7))
    wanted: dict[str, torch.Tensor] = {}

    def average() -> None:
        averaged.update_parameters(model)
        for name, parameter in model.named_parameters():
            value = parameter.detach().double()
            wanted[name] = 0.7 * wanted[name] + 0.3 * value if name in wanted else value

    train(model, torch.optim.Adam(model.parameters(), 1e-2), 5, average)
    last = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model.load_state_dict(averaged.module.state_dict())
    model.eval()
    moved = [name for name, parameter in model.named_parameters() if not torch.equal(parameter, last[name])]
    assert any(name.endswith("log_scale") for name in moved)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), wanted[name].float(), rtol=1e-5, atol=1e-6, msg=name)
    sim.save(tmp_path / "sim")
    with torch.no_grad():
        expected = averaged.module.eval()(X).numpy()
    np.testing.assert_array_equal(sim.run(X)["output"], expected)
    np.testing.assert_array_equal(isobit.load(tmp_path / "sim", network()).run(X)["output"], expected)


@pytest.mark.parametrize("reentrant", [False, True])
def test_steps_with_recomputed_activations_are_those_without(reentrant: bool) -> None:
    states = []
    for recomputes in (False, True):
        sim = simulator()
        model = sim.trainable().train()

        def run(images: torch.Tensor, model: nn.Module = model, recomputes: bool = recomputes) -> torch.Tensor:
            if not recomputes:
                return model(images)
            return checkpoint(model, images.clone().requires_grad_(), use_reentrant=reentrant)

        train(run, torch.optim.Adam(model.parameters(), 1e-2), 3)
        states.append(copy.deepcopy(model.state_dict()))
    for name, value in states[0].items():
        assert torch.equal(states[1][name], value), name


def test_steps_that_a_trainer_sums_up_are_divided(tmp_path: Path) -> None:
    """One step of eight samples is one of two times four."""
    pytest.importorskip("accelerate")
    transformers = pytest.importorskip("transformers")

    class Trainer(transformers.Trainer):  # type: ignore[misc]
        def compute_loss(self, model: nn.Module, inputs: dict[str, torch.Tensor], **settings: object) -> torch.Tensor:
            return nn.functional.mse_loss(model(inputs["input"]), inputs["labels"])

    torch.manual_seed(0)
    module, x, y = nn.Linear(4, 2).eval(), torch.randn(8, 4), torch.randn(8, 2)
    samples = [{"input": a, "labels": b} for a, b in zip(x, y, strict=True)]
    weights = []
    for steps in (1, 2):
        settings = transformers.TrainingArguments(
            str(tmp_path), max_steps=1, per_device_train_batch_size=8 // steps, gradient_accumulation_steps=steps,
            optim="sgd", learning_rate=0.1, lr_scheduler_type="constant", remove_unused_columns=False,
            label_names=["labels"], report_to=[], use_cpu=True, disable_tqdm=True, max_grad_norm=0, save_strategy="no",
        )  # fmt: skip
        sim = isobit.quantize(module, x, progress=False)
        Trainer(model=sim.trainable("frozen"), args=settings, train_dataset=samples).train()
        weights.append(sim.model.state_dict()["weight"].clone())
    assert not torch.equal(weights[0], module.weight)
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=1e-5)
