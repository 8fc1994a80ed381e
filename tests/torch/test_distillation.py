"""The float model as a teacher: its loss against NumPy, what it shares, and what it brings back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from isobit.errors import FormatError, ModelError
from isobit.quantsim import QuantSim
from isobit.techniques import CorrectBias, FoldBatchNorms
from isobit.training import distillation_loss

X = torch.randn(64, 12, generator=torch.Generator().manual_seed(2))


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(12, 24), nn.BatchNorm1d(24), nn.ReLU())
        self.classes, self.values = nn.Linear(24, 5), nn.Linear(24, 3)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.body(x)
        return {"classes": self.classes(features), "values": self.values(features)}


def simulator() -> QuantSim:
    torch.manual_seed(0)
    model = TwoHeads().eval()
    model.classes.requires_grad_(False)
    sim = QuantSim(model, X, weights="int3", activations="uint4")
    sim.apply(FoldBatchNorms(), CorrectBias(), data=[X] * 2, progress=False)
    sim.calibrate([X], "minmax", progress=False)
    return sim


@pytest.mark.parametrize("temperature", [None, 3.0])
def test_the_loss_is_that_of_the_float_model(temperature: float | None) -> None:
    """By NumPy, and against outputs without what makes up for quantization."""
    sim = simulator()
    wanted, given = sim.run_float(X), sim.run(X)
    expected = {name: distillation_loss(given[name], wanted[name], temperature) for name in wanted}
    loss = sim.distillation(temperature)(sim.model(X), X)
    np.testing.assert_allclose(loss.item(), np.mean(list(expected.values())), rtol=1e-4)
    one = sim.distillation(temperature, outputs="values", weight=2)(sim.model(X), x=X)
    np.testing.assert_allclose(one.item(), 2 * expected["values"], rtol=1e-4)
    assert expected["values"] > 1e-4


def test_the_teacher_stays_and_shares_what_does_not_train() -> None:
    sim = simulator()
    model = sim.trainable()
    distill = sim.distillation()
    teacher = distill.model
    names = {name: p for name, p in teacher.named_parameters() if p.data_ptr() == model.get_parameter(name).data_ptr()}
    assert set(names) == {"classes.weight"}  # its bias was corrected, so the teacher has the one before
    wanted = {name: tensor.clone() for name, tensor in teacher(X).items()}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    model.train()
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = distill(model(X), X)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    for name, tensor in teacher(X).items():
        assert torch.equal(tensor, wanted[name])
    assert not any(p.requires_grad for p in teacher.parameters())


def test_bad_settings_say_what_is_known() -> None:
    sim = simulator()
    with pytest.raises(FormatError, match=r"no float output 'klasses'; did you mean 'classes'|'klasses'"):
        sim.distillation(outputs="klasses")
    with pytest.raises(FormatError, match="temperature is a number above 0, not 0"):
        sim.distillation(0)
    with pytest.raises(FormatError, match="weight is a number above 0"):
        sim.distillation(weight=float("nan"))


def test_models_that_do_not_train_have_no_teacher() -> None:
    onnx = pytest.importorskip("onnx")
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    ports = [onnx.helper.make_tensor_value_info(name, 1, ["n", 4]) for name in "xy"]
    graph = onnx.helper.make_graph([node], "relu", ports[:1], ports[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    with pytest.raises(ModelError, match="a model of the onnx backend does not train"):
        QuantSim(model).distillation()
