"""Modules as people write them: names, structures and parameters that the simulator has to live with."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import isobit
from isobit.errors import ModelError


@dataclasses.dataclass
class Scores:
    logits: torch.Tensor
    features: dict[str, torch.Tensor]
    loss: torch.Tensor | None = None


@dataclasses.dataclass
class Sample:
    left: torch.Tensor
    right: torch.Tensor


class Named(nn.Module):
    """Parts with names that the simulator might use for its own."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.names = names
        for name in names:
            self.add_module(name, nn.Linear(4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name in self.names:
            x = torch.relu(self._modules[name](x))
        return x


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, sample: Sample) -> Scores:
        features = torch.relu(self.body(sample.left - sample.right))
        return Scores(self.head(features), {"body": features})


def test_dataclasses_go_in_and_out() -> None:
    module = Heads().eval()
    sample = Sample(torch.randn(5, 4), torch.randn(5, 4))
    sim = isobit.quantize(module, [(sample,)], progress=False)
    assert set(sim.run((sample,))) == {"logits", "features.body"}
    found = sim.model(sample)
    assert isinstance(found, Scores)
    assert found.loss is None
    np.testing.assert_array_equal(found.features["body"].detach(), sim.run((sample,))["features.body"])


@pytest.mark.parametrize("names", [("signature", "sources", "computed"), ("inputs", "root", "keys", "layout")])
def test_names_of_parts(names: tuple[str, ...], tmp_path: Path) -> None:
    module, x = Named(*names).eval(), torch.randn(5, 4)
    sim = isobit.quantize(module, [x], progress=False)
    np.testing.assert_allclose(sim.run_float(x)["output"], module(x).detach().numpy(), rtol=1e-5, atol=1e-6)
    assert set(module.state_dict()) <= set(sim.model.state_dict())
    sim.export(tmp_path / "out", formats=("onnx", "pt2", "torchscript"))
    sim.save(tmp_path / "sim.isobit")
    loaded = isobit.load(tmp_path / "sim.isobit", module, x)
    np.testing.assert_array_equal(loaded.run(x)["output"], sim.run(x)["output"])


@pytest.mark.parametrize(
    "names", [("graph",), ("code", "device"), ("quantizers", "run_flat"), ("meta", "graph_1", "graph")]
)
def test_names_that_the_simulator_has_itself(names: tuple[str, ...], tmp_path: Path) -> None:
    module, x = Named(*names).eval(), torch.randn(5, 4)
    sim = isobit.quantize(module, [x], progress=False)
    np.testing.assert_allclose(sim.run_float(x)["output"], module(x).detach().numpy(), rtol=1e-5, atol=1e-6)
    assert any(repr(names[-1]) in note for note in sim.graph.notes)
    assert len(list(sim.plan.of_kind("weight"))) == len(names)
    sim.export(tmp_path / "out", formats=("onnx", "pt2", "torchscript"))
    sim.save(tmp_path / "sim.isobit")
    loaded = isobit.load(tmp_path / "sim.isobit", module)
    np.testing.assert_array_equal(loaded.run(x)["output"], sim.run(x)["output"])


class Lettered(nn.Module):
    """Heads and scales under any names, and a parameter and a buffer that are called as the inputs are."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({name: nn.Linear(4, 4) for name in names})
        self.scales = nn.ParameterDict({name: nn.Parameter(torch.randn(4)) for name in names})
        self.x = nn.Parameter(torch.randn(4, 4))
        self.register_buffer("mask", torch.tensor([1.0, 2.0, 3.0, 4.0]))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        y = nn.functional.linear(x * mask, self.x) * self.mask
        for name, head in self.heads.items():
            y = torch.relu(head(y) * self.scales[name])
        return y


@pytest.mark.parametrize(
    "names", [("class", "box", "None"), ("class_1", "class", "lambda"), ("\u00b5", 'a "b"', "c\\d")]
)
def test_names_that_code_cannot_say(names: tuple[str, ...], tmp_path: Path) -> None:
    module, x = Lettered(*names).eval(), (torch.randn(5, 4), torch.ones(5, 4))
    sim = isobit.QuantSim(module, x)
    sim.calibrate([x], progress=False)
    np.testing.assert_allclose(sim.run_float(x)["output"], module(*x).detach().numpy(), rtol=1e-4, atol=1e-5)
    assert any("since code cannot call it" in note for note in sim.graph.notes)
    assert any("'x' of the model is 'x_1'" in note and "has an input" in note for note in sim.graph.notes)
    assert len(list(sim.plan.of_kind("weight"))) == 4
    sim.export(tmp_path / "out", formats=("pt2",))
    sim.save(tmp_path / "sim.isobit")
    loaded = isobit.load(tmp_path / "sim.isobit", module)
    np.testing.assert_array_equal(loaded.run(x)["output"], sim.run(x)["output"])


def test_a_batch_norm_and_a_parameter_under_such_names_train() -> None:
    module = nn.Sequential()
    module.add_module("first", nn.Linear(4, 4))
    module._modules["graph"] = nn.BatchNorm1d(4)
    module.register_module("last", nn.Linear(4, 2))
    sim = isobit.QuantSim(module.eval(), torch.randn(5, 4))
    sim.calibrate([torch.randn(5, 4)], progress=False)
    before = sim.model.state_dict()["graph_1.running_mean"].clone()
    sim.model.train()(torch.randn(5, 4) + 3)
    assert not torch.equal(before, sim.model.state_dict()["graph_1.running_mean"])


def test_parameters_without_values_are_refused() -> None:
    with pytest.raises(ModelError, match=r"'0\.weight' has no values yet: run the model once"):
        isobit.quantize(nn.Sequential(nn.LazyLinear(4)).eval(), [torch.randn(5, 4)], progress=False)


class Prepared(nn.Module):
    """A float model with the places where torch.ao.quantization would put its own quantizers."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = torch.ao.quantization.QuantStub(), torch.ao.quantization.DeQuantStub()
        self.conv, self.add = nn.Conv2d(3, 3, 3, padding=1), torch.ao.nn.quantized.FloatFunctional()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.quant(x)
        return self.dequant(self.add.add_relu(x, self.conv(x)))


class Repeated(nn.Module):
    """A buffer whose values are the same place in memory, into which nothing can be written."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.register_buffer("kernel", torch.full((3, 3), 1 / 9).expand(3, 1, 3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(self.conv(x), self.kernel, groups=3)


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
@pytest.mark.parametrize("kind", [Prepared, Repeated])
def test_float_models_with_odd_parts(kind: type[nn.Module]) -> None:
    module, x = kind().eval(), torch.randn(4, 3, 6, 6)
    sim = isobit.QuantSim(module, x)
    sim.calibrate([x], "minmax", progress=False)
    np.testing.assert_allclose(sim.run_float(x)["output"], module(x).detach(), rtol=1e-5, atol=1e-5)
    assert sim.report.coverage.integer_weight_bytes == sim.report.coverage.weight_bytes


def test_rows_that_forward_shortens_stay_as_they_were() -> None:
    module, ids = nn.Sequential(nn.Embedding(10, 4, max_norm=0.5), nn.Linear(4, 3)).eval(), torch.arange(10)[None]
    before = module[0].weight.detach().clone()
    sim = isobit.QuantSim(module, ids)
    sim.calibrate([ids], "minmax", progress=False)
    assert torch.equal(module[0].weight, before)
    np.testing.assert_allclose(sim.run_float(ids)["output"], module(ids).detach(), rtol=1e-5, atol=1e-5)


def test_numbers_that_change_nothing_are_no_operations() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 3) for _ in range(2))

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            total = sum(layer(x) for layer in self.layers)  # begins with 0
            return total * 1, 1 - total, x.long() * 1.0  # the last becomes floats

    module, x = Sum().eval(), 3 * torch.randn(5, 4)
    sim = isobit.QuantSim(module, x)
    assert sorted(node.op for node in sim.graph.nodes if node.op in ("Add", "Mul", "Sub")) == ["Add", "Mul", "Sub"]
    for found, wanted in zip(sim.run_float(x).values(), module(x), strict=True):
        np.testing.assert_allclose(found, wanted.detach(), rtol=1e-5, atol=1e-6)
