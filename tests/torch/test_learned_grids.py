"""Learned grids: gradients against formulas in NumPy and finite differences, bounds, modes, quality, checkpoints."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import isobit
from isobit.encodings import Encoding, LearnedGrid
from isobit.encodings.learned_grid import LOG_BOUND, gradients, learned_encoding
from isobit.errors import FormatError, ModelError
from isobit.quantsim import QuantSim
from isobit_torch.simulate.quantizers import Quantizer

GRIDS = {
    "symmetric": (Encoding.of("int4", 0.11), LearnedGrid(np.float32(0.3), unit=0.5)),
    "asymmetric": (Encoding.of("uint4", 0.11, 6), LearnedGrid(np.float32(0.3), zero_point_levels=15)),
    "per channel": (
        Encoding.of("int3 per-channel", [0.1, 0.2, 0.3], 0, axis=1),
        LearnedGrid(np.array([0.1, 0.2, 0.3], np.float32)),
    ),
    "per block": (
        Encoding.of("int4 block=4", np.array([[0.1, 0.2]] * 3).T.reshape(2, 3)[:1].repeat(4, 0)[:, :2], 0, axis=1),
        LearnedGrid(np.full((4, 2), 0.5, np.float32)),
    ),
    "pact": (Encoding.of("uint4", 0.11), LearnedGrid(np.float32(1), rounding=False)),
    "wide": (Encoding.of("int32", 1e-3), LearnedGrid(np.float32(1))),
}


def sample(name: str) -> np.ndarray:
    shape = (4, 8) if name == "per block" else (5, 3, 7)
    return np.random.default_rng(3).normal(0.1, 0.7, shape).astype(np.float32)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside torch._dynamo
@pytest.mark.parametrize("layout", ["eager", "channels last", "recorded"])
@pytest.mark.parametrize("name", GRIDS)
def test_gradients_are_those_of_lsq(name: str, layout: str) -> None:
    """Against `gradients`, which is the papers' formula in float64."""
    encoding, grid = GRIDS[name]
    quantizer = Quantizer(encoding)
    quantizer.learn(grid)
    values = sample(name)
    upstream = np.random.default_rng(4).normal(size=values.shape).astype(np.float32)
    x = torch.from_numpy(values)
    if layout == "channels last":
        x = x.transpose(0, 1).contiguous().transpose(0, 1)
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    torch._dynamo.reset()  # a number that another model had would become symbolic
    run = torch.compile(quantizer, backend="aot_eager") if layout == "recorded" and name != "wide" else quantizer
    result = run(x)
    np.testing.assert_array_equal(result.detach().numpy(), encoding.fake_quantize(values))
    result.backward(torch.from_numpy(upstream))
    by_x, by_scale, by_zero = gradients(values, upstream, encoding, rounding=grid.rounding)
    axes = {"per channel": (0, 2)}.get(name, (0, 1, 2))
    total = by_scale.reshape(4, 2, 4).sum(2) if name == "per block" else by_scale.sum(axes)
    np.testing.assert_array_equal(x.grad.numpy(), by_x.astype(np.float32))
    expected = grid.factor * encoding.scale * total
    np.testing.assert_allclose(quantizer.log_scale.grad.numpy(), expected, rtol=2e-4, atol=1e-6)
    if grid.zero_point_levels:
        np.testing.assert_allclose(quantizer.offset.grad.numpy(), 0.3 * 15 * by_zero.sum(), rtol=2e-4)
    else:
        assert quantizer.offset is None


@pytest.mark.parametrize("name", ["symmetric", "asymmetric", "per channel", "wide blocks"])
def test_gradients_follow_the_loss(name: str) -> None:
    """Finite differences of the squared error, averaged over many values: there the rounding is a smooth function."""
    blocks = Encoding.of("int4 block=10000", np.full((4, 2), 0.1) * [[1, 2]], 0, axis=1)
    encoding = blocks if name == "wide blocks" else GRIDS[name][0]
    quantizer = Quantizer(encoding)
    quantizer.learn(LearnedGrid(np.ones(encoding.scale.shape, np.float32)))
    shape = (4, 20_000) if name == "wide blocks" else (40_000, 3, 1)
    values = np.random.default_rng(0).normal(0.1, 0.7, shape).astype(np.float32)
    x = torch.from_numpy(values)
    (quantizer(x.requires_grad_()) - x.detach()).square().mean().backward()

    def error(log_scale: float) -> float:
        moved = learned_encoding(encoding, LearnedGrid(np.float32(1)), log_scale)
        return float(np.square(moved.fake_quantize(values) - values.astype(np.float64)).mean())

    slope = (error(0.05) - error(-0.05)) / 0.1
    assert float(quantizer.log_scale.grad.sum()) == pytest.approx(slope, rel=0.1, abs=0.001)


def test_ranges_neither_collapse_nor_cross() -> None:
    """Whatever an optimizer does with the parameters, NaN gradients included, the grid is one."""
    start = Encoding.of("uint8", 0.02, 100)
    quantizer = Quantizer(start)
    quantizer.learn(LearnedGrid(np.float32(1), zero_point_levels=255))
    x = torch.linspace(-4, 4, 9).requires_grad_()
    for log_scale, offset in ((50.0, 9.0), (-50.0, -9.0), (3.0, 0.1)):
        with torch.no_grad():
            quantizer.log_scale.fill_(log_scale)
            quantizer.offset.fill_(offset)
        expected = learned_encoding(start, quantizer._learned, log_scale, offset)
        np.testing.assert_allclose(quantizer.encoding.scale, expected.scale, rtol=1e-6)
        assert quantizer.encoding.zero_point == expected.zero_point
        assert 0.02 / 65 < quantizer.encoding.scale < 0.02 * 65
        quantizer.zero_grad()
        quantizer(x).backward(torch.full((9,), torch.nan))
        assert float(quantizer.log_scale.grad) == 0
    with torch.no_grad():
        quantizer.log_scale.fill_(LOG_BOUND + 1)
    quantizer(x).backward(torch.sign(x.detach()))
    assert float(quantizer.log_scale.grad) >= 0  # it may come back, and goes no further


# --- whole models ----------------------------------------------------------------------------------------------------


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5)
    ).eval()


@pytest.fixture
def trained() -> tuple[QuantSim, torch.Tensor]:
    x = torch.randn(32, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    return isobit.quantize(network(), [x], target="default", progress=False), x


def fit(
    model: nn.Module,
    x: torch.Tensor,
    goal: torch.Tensor,
    optimizer: torch.optim.Optimizer,
    steps: int,
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
) -> None:
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        functional.mse_loss(model(x), goal).backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
    model.eval()


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_quality_is_not_lost(trained: tuple[QuantSim, torch.Tensor], optimizer: str) -> None:
    sim, x = trained
    goal = torch.from_numpy(sim.run_float(x)["output"])

    def quality() -> float:
        error = sim.run(x)["output"] - goal.numpy()
        return float(10 * np.log10(np.square(goal.numpy()).sum() / np.square(error).sum()))

    before = quality()
    model = sim.trainable()
    kind = {"adam": lambda p: torch.optim.Adam(p, 1e-3), "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9)}
    optimizing = kind[optimizer](model.parameters())
    # A rate that stays hops by decibels around the best, and the last bits of a processor decide where it ends.
    fit(model, x, goal, optimizing, 100, torch.optim.lr_scheduler.LinearLR(optimizing, 1.0, 0.0, 100))
    assert quality() > before - 0.2


def test_modes(trained: tuple[QuantSim, torch.Tensor]) -> None:
    sim, x = trained
    before = sim.run(x)["output"]
    model = sim.trainable("pact", weights="frozen", overrides={"4": "learned", "6*": "frozen"})
    modes = {name: q._learned.rounding for name, q in model.quantizers.items() if q._learned is not None}
    assert modes == {"input": False, "2": False, "4": True}
    np.testing.assert_array_equal(sim.run(x)["output"], before)
    group = sim.quantizer_parameters()
    assert {id(p) for p in group} == {id(p) for n, p in model.named_parameters() if "isobit_quantizers" in n}
    frozen = sim.encodings
    fit(model, x, torch.zeros(32, 5), torch.optim.Adam(model.parameters(), 1e-2), 3)
    moved = {str(site) for site in frozen if sim.encodings[site] != frozen[site]}
    assert {"2", "4"} <= moved
    assert not {"0.weight", "3.weight", "6.weight", "6"} & moved


def test_mistakes(trained: tuple[QuantSim, torch.Tensor]) -> None:
    sim, x = trained
    with pytest.raises(ModelError, match="calibrate first"):
        QuantSim(network(), x).trainable()
    with pytest.raises(FormatError, match="did you mean 'learned'"):
        sim.trainable("learnt")
    with pytest.raises(FormatError, match="reaches no quantized tensor"):
        sim.trainable(overrides={"head": "frozen"})
    model = sim.trainable()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ModelError, match="nothing would train"):
        sim.trainable("frozen")
    sim.trainable()


def test_a_checkpoint_in_the_middle(trained: tuple[QuantSim, torch.Tensor]) -> None:
    """Steps, a checkpoint and steps are the bits of steps alone."""
    sim, x = trained
    goal = torch.zeros(32, 5)
    model = sim.trainable()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    fit(model, x, goal, optimizer, 3)
    saved, saved_optimizer = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    fit(model, x, goal, optimizer, 3)
    other = isobit.quantize(network(), [x], target="default", progress=False)
    again = other.trainable()
    again.load_state_dict(saved)
    resumed = torch.optim.Adam(again.parameters(), 1e-2)
    resumed.load_state_dict(saved_optimizer)
    fit(again, x, goal, resumed, 3)
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert dict(sim.encodings) == dict(other.encodings)
    calibrated = isobit.quantize(network(), [x], target="default", progress=False)
    again.load_state_dict(calibrated.model.state_dict())  # of grids that are not learned
    assert dict(other.encodings) == dict(calibrated.encodings)


def test_an_optimizer_from_before(trained: tuple[QuantSim, torch.Tensor]) -> None:
    sim, x = trained
    optimizer = torch.optim.SGD(sim.model.parameters(), 1e-3)
    with pytest.raises(ModelError, match="made before trainable"):
        fit(sim.trainable(), x, torch.zeros(32, 5), optimizer, 9)
    with pytest.raises(ModelError, match="made before trainable"):
        fit(sim.model, x, torch.zeros(32, 5), optimizer, 2)  # who catches the first is told again
    fit(sim.trainable("frozen"), x, torch.zeros(32, 5), optimizer, 9)
    sim.trainable()
    sim.calibrate([x], progress=False)  # ends it
    assert sim.quantizer_parameters() == []
    fit(sim.model, x, torch.zeros(32, 5), optimizer, 2)


def test_two_optimizers_may_take_turns(trained: tuple[QuantSim, torch.Tensor]) -> None:
    """One of the weights and one of the grids, of which the latter makes a step now and then."""
    sim, x = trained
    model, grids = sim.trainable(), sim.quantizer_parameters()
    weights = [p for p in model.parameters() if not any(p is grid for grid in grids)]
    for _ in range(3):
        fit(model, x, torch.zeros(32, 5), torch.optim.SGD(weights, 1e-3), 4)
        fit(model, x, torch.zeros(32, 5), torch.optim.SGD(grids, 1e-3), 1)


def test_nan_is_named(trained: tuple[QuantSim, torch.Tensor], tmp_path: Path) -> None:
    sim, x = trained
    model = sim.trainable()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    before = sim.encodings
    model.train()
    model(x)
    with pytest.raises(ModelError, match=r"pass 2 of training: 'input' holds NaN"):
        model(torch.full_like(x, torch.nan))
    (model(x).sum() * torch.nan).backward()
    optimizer.step()
    assert dict(sim.encodings) == dict(before)  # a loss of NaN moves no range
    with pytest.raises(ModelError, match=r"pass 4 of training: '0.weight' holds NaN, so the step before"):
        model(x)
    for write in (sim.export, sim.save):  # after the last step no pass tells
        with pytest.raises(ModelError, match=r"weight '0.weight' holds NaN: the loss or a gradient of some step"):
            write(tmp_path / "written")


def test_gradients_of_a_shared_grid_add_up() -> None:
    """Of tensors that one scale rounds, a reused layer's or those that a Concat joins."""
    first, second = Quantizer(Encoding.of("uint4", 0.2, 3)), Quantizer(Encoding.of("uint4", 0.2, 3))
    first.learn(LearnedGrid(np.float32(0.3), zero_point_levels=15))
    second.relate(first)
    values, upstream = np.random.default_rng(5).normal(0.3, 1, (2, 2, 50)).astype(np.float32)
    for x, gradient, quantizer in zip(values, upstream, (first, second), strict=True):
        quantizer(torch.from_numpy(x)).backward(torch.from_numpy(gradient))
    _, by_scale, by_zero = gradients(values, upstream, first.encoding)
    np.testing.assert_allclose(first.log_scale.grad, 0.3 * 0.2 * by_scale.sum(), rtol=1e-4)
    np.testing.assert_allclose(first.offset.grad, 0.3 * 15 * by_zero.sum(), rtol=1e-4)


def test_mixed_precision_and_recomputation(trained: tuple[QuantSim, torch.Tensor]) -> None:
    sim, x = trained
    model = sim.trainable()
    model.train()

    def gradients_of(run: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, torch.Tensor]:
        model.zero_grad()
        run(x).square().mean().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    expected = gradients_of(model)
    again = gradients_of(lambda batch: checkpoint(model, batch, use_reentrant=False))
    assert all(torch.equal(again[name], gradient) for name, gradient in expected.items())
    with torch.autocast("cpu", torch.bfloat16):
        half = gradients_of(model)
    assert all(gradient.dtype == torch.float32 and gradient.isfinite().all() for gradient in half.values())
    assert all(half[name].norm() > 0 for name, gradient in expected.items() if gradient.norm() > 1e-3)


@pytest.mark.parametrize("write", ["fused", "data"])
def test_evaluation_sees_every_update(trained: tuple[QuantSim, torch.Tensor], write: str) -> None:
    """Neither fused optimizers nor writes through `.data` count a version; kept results are of the last grid."""
    sim, x = trained
    model = sim.trainable()
    with torch.no_grad():
        before = model.eval()(x)
    if write == "fused":
        fit(model, x, torch.zeros(32, 5), torch.optim.Adam(sim.quantizer_parameters(), 0.1, fused=True), 1)
    else:
        for parameter in sim.quantizer_parameters():
            parameter.data.add_(0.5)
    with torch.no_grad():
        after, expected = model(x), copy.deepcopy(model)(x)
    assert torch.equal(after, expected)
    assert not torch.equal(after, before)


def test_second_gradients() -> None:
    """Those of the kernel's grids on the CPU are those of the expression, which a recorded tensor takes."""
    encoding, grid = GRIDS["symmetric"]
    found = []
    for values in (torch.from_numpy(sample("symmetric")), torch.from_numpy(sample("symmetric")).double()):
        quantizer = Quantizer(encoding)
        quantizer.learn(grid)
        x, weight = values.requires_grad_(), torch.full(values.shape, 0.7, dtype=values.dtype, requires_grad=True)
        (by_x, by_scale) = torch.autograd.grad(
            (quantizer(x) * weight).sum(), (x, quantizer.log_scale), create_graph=True
        )
        found.append(torch.autograd.grad(by_x.square().sum() + by_scale, weight, retain_graph=True)[0])
        steps = (values / 0.11).round()
        inside = (steps >= -8) & (steps <= 7)
        (by_weight,) = torch.autograd.grad(by_x.square().sum(), weight)
        torch.testing.assert_close(by_weight, 1.4 * inside.to(values.dtype))
    torch.testing.assert_close(found[0], found[1].float(), rtol=1e-5, atol=1e-6)


def test_weights_that_something_else_changes(trained: tuple[QuantSim, torch.Tensor]) -> None:
    """Loading, or clamping, between passes is no step of training; a copy is watched as the original is."""
    sim, x = trained
    model = sim.trainable()
    model.train()
    model(x)
    model.load_state_dict({k: v for k, v in model.state_dict().items() if "isobit_quantizers" not in k})
    model(x)
    separate = [torch.optim.SGD([p for name, p in model.named_parameters() if "isobit_quantizers" not in name], 1e-3)]
    separate.append(torch.optim.Adam(sim.quantizer_parameters(), 1e-3, fused=True))
    for _ in range(2):
        model(x).square().mean().backward()
        for optimizer in separate:
            optimizer.step()
        model.zero_grad()
    copied = copy.deepcopy(sim.trainable())
    weights = [p for name, p in copied.named_parameters() if "isobit_quantizers" not in name]
    with pytest.raises(ModelError, match="made before trainable"):
        fit(copied, x, torch.zeros(32, 5), torch.optim.SGD(weights, 1e-3), 9)
