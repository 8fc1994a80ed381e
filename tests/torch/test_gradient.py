"""Gradients: the rounding of activations, what stays untouched, ties and parts of parameters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from isobit.backend import CheckedModel
from isobit.backend.checked_model import CheckedDifferentiable
from isobit.encodings import Encoding, LearnedGrid
from isobit.errors import DataError, ModelError
from isobit.graph import Permute, Take, Tensor, View
from isobit.graph import layout as reference
from isobit_torch.backend import TorchBackend
from isobit_torch.program.layouts import to_canonical, to_native
from isobit_torch.simulate.cpu_gradient import _pass_and_sum
from isobit_torch.simulate.quantizers import Quantizer


class Tied(nn.Module):
    """A table that is the output projection too, and a layer that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 6)
        self.hidden = nn.Linear(6, 6)
        self.out = nn.Linear(6, 10, bias=False)
        self.out.weight = self.table.weight
        self.aside = nn.Linear(6, 1)

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.hidden(self.table(ids)).relu()
        return self.out(x), self.aside(x)


@pytest.fixture
def tied() -> CheckedDifferentiable:
    torch.manual_seed(0)
    opened = CheckedModel.of(TorchBackend().open(Tied().eval(), torch.randint(0, 10, (2, 3))))
    assert isinstance(opened, CheckedDifferentiable)
    return opened


IDS = {"ids": np.array([[1, 2, 3], [4, 5, 1]])}


def test_ties_add_up(tied: CheckedDifferentiable) -> None:
    module = Tied().eval()
    module.load_state_dict({k: v for k, v in tied.native.state_dict().items() if not k.startswith("isobit")})
    loss = module(torch.from_numpy(IDS["ids"]))[0].square().sum()
    loss.backward()
    names = [name for name in tied.graph.weights if name in ("table.weight", "out.weight")]
    for name in names:
        value, gradients = tied.gradient(lambda o: o["output"].square().sum(), {name: tied.weight(name)}, IDS)
        assert value == pytest.approx(float(loss.detach()), rel=1e-5)
        np.testing.assert_allclose(gradients[name], module.table.weight.grad.numpy(), rtol=1e-4, atol=1e-5)


def test_what_the_function_does_not_reach(tied: CheckedDifferentiable) -> None:
    weights = {"hidden.weight": tied.weight("hidden.weight"), "aside.weight": tied.weight("aside.weight")}
    _, gradients = tied.gradient(lambda o: o["output"].mean(), weights, IDS)
    assert not gradients["aside.weight"].any()
    assert gradients["hidden.weight"].any()
    with pytest.raises(ModelError, match="detach"):
        tied.gradient(lambda o: o["output"].detach().mean(), weights, IDS)
    value, none = tied.gradient(lambda o: o["output"].mean(), {}, IDS)
    assert none == {}
    assert value == pytest.approx(tied.run(IDS)["output"].mean(), rel=1e-5)


def test_the_model_stays_as_it_is(tied: CheckedDifferentiable) -> None:
    tied.set_quantizers({Tensor("hidden"): Encoding.of("uint8", 0.01, 20)})
    native = tied.native
    native.train()
    tied.inner.learn({Tensor("hidden"): LearnedGrid(np.ones((), np.float32))})
    native.get_parameter("hidden.bias").requires_grad_(False)
    before = {name: (p, p.requires_grad, p.detach().clone()) for name, p in native.named_parameters()}
    weights = {"hidden.weight": tied.weight("hidden.weight") * np.float32(2)}
    tied.gradient(lambda o: o["output"].mean(), weights, IDS)
    with pytest.raises(ZeroDivisionError):
        tied.gradient(lambda o: 1 / 0, weights, IDS)
    assert native.training
    for name, parameter in native.named_parameters():
        same, trained, value = before[name]
        assert parameter is same
        assert parameter.requires_grad == trained
        assert parameter.grad is None
        assert torch.equal(parameter, value)


def test_gradients_pass_activation_quantizers_inside_the_grid() -> None:
    """y = c · W fq(x), and z = fq(W x): by hand."""
    torch.manual_seed(0)
    model = CheckedModel.of(TorchBackend().open(nn.Linear(4, 3, bias=False), torch.randn(2, 4)))
    weight, x = model.weight("weight"), np.array([[0.31, -9.0, 0.49, 0.02]], np.float32)
    coarse = Encoding.of("int4", 0.1)
    c = np.array([1.0, -2.0, 0.5], np.float32)
    factor = torch.from_numpy(c)
    model.set_quantizers({Tensor("input"): coarse})
    _, gradients = model.gradient(lambda o: (o["output"] * factor).sum(), {"weight": weight}, {"input": x})
    np.testing.assert_allclose(gradients["weight"], np.outer(c, coarse.fake_quantize(x)[0]), rtol=1e-6)
    z = x @ weight.T
    coarse = Encoding.of("int4", np.median(np.abs(z)) / 7)  # one of the three outputs saturates
    model.set_quantizers({Tensor("input"): None, Tensor(model.graph.outputs["output"]): coarse})
    value, gradients = model.gradient(lambda o: (o["output"] * factor).sum(), {"weight": weight}, {"input": x})
    inside = np.abs(np.rint(z[0] / coarse.scale) + 0.5) < 8
    assert inside.sum() == 2
    assert value == pytest.approx(float((coarse.fake_quantize(z)[0] * c).sum()), rel=1e-5)
    np.testing.assert_allclose(gradients["weight"], np.outer(c * inside, x[0]), rtol=1e-6)


def test_non_finite_gradients_are_named() -> None:
    model = CheckedModel.of(TorchBackend().open(nn.Linear(2, 2, bias=False), torch.randn(2, 2)))
    zero = {"weight": np.zeros((2, 2), np.float32)}
    with pytest.raises(DataError, match="'weight' holds NaN or infinity"):
        model.gradient(lambda o: o["output"].sum().sqrt(), zero, {"input": np.ones((1, 2), np.float32)})


@st.composite
def layouts(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[Permute | View | Take, ...]]:
    """A native shape and a layout of steps that fit it."""
    native = shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    steps: list[Permute | View | Take] = []
    for _ in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from(["permute", "view", "take"]))
        if kind == "permute":
            axes = tuple(draw(st.permutations(range(len(shape)))))
            steps.append(Permute(axes))
            shape = tuple(shape[axis] for axis in axes)
        elif kind == "view":
            joined = (int(np.prod(shape)),) if draw(st.booleans()) else (*shape, 1)
            steps.append(View(joined, shape))
            shape = joined
        elif len(shape) > 1:
            steps.append(Take(draw(st.integers(0, shape[0] - 1))))
            shape = shape[1:]
    return native, tuple(steps)


@settings(max_examples=80, deadline=None)
@given(layouts())
def test_layouts_on_tensors(case: tuple[tuple[int, ...], tuple[Permute | View | Take, ...]]) -> None:
    shape, layout = case
    native = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    canonical = reference.to_canonical(native, layout)
    np.testing.assert_array_equal(to_canonical(torch.from_numpy(native), layout).numpy(), canonical)
    changed = torch.from_numpy(canonical + np.float32(1000)).requires_grad_()
    result = to_native(changed, layout, torch.from_numpy(native))
    expected = reference.to_native(changed.detach().numpy(), layout, native)
    np.testing.assert_array_equal(result.detach().numpy(), expected)
    (result * torch.from_numpy(native)).sum().backward()
    np.testing.assert_array_equal(changed.grad.numpy(), canonical)


def test_a_learned_zero_point_is_rounded_in_every_path() -> None:
    quantizer = Quantizer(Encoding.of("uint8", 0.1, 100))
    quantizer.learn(LearnedGrid(np.ones((), np.float32), zero_point_levels=255))
    x = torch.randn(50)
    with torch.no_grad():
        quantizer.offset.add_(1.4 / 255)
        fast = quantizer(x)
    trained = quantizer(x).detach()
    quantizer.requires_grad_(False)
    np.testing.assert_array_equal(trained.numpy(), quantizer.encoding.fake_quantize(x.numpy()))
    assert torch.equal(fast, trained)
    assert torch.equal(quantizer._compute(x), trained)


def test_sums_do_not_depend_on_where_arrays_lie() -> None:
    """Steps of training have the same bits again: what an allocator gives is another address each time."""
    rng = np.random.default_rng(0)
    values, upstream = (rng.standard_normal(1500, np.float32) for _ in range(2))
    memory, found = np.zeros(9000, np.float32), set()
    for gap in (0, 8, 100, 700, 1400):  # the result behind what is read, nearer or farther than a chunk
        x, gradient, result = (memory[start : start + 1500] for start in (0, 1500 + gap, 3000 + 2 * gap))
        x[:], gradient[:] = values, upstream
        sums = np.zeros(2)
        _pass_and_sum(x, gradient, result, *map(np.float32, (0.02, 128, 0, 255, 1)), sums)
        found.add(tuple(sums))
    assert len(found) == 1
