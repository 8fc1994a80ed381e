"""What PyTorch users do with any module, done with the simulator."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils import _pytree as pytree

from isobit.placement import QuantConfig
from isobit.plugins import registry
from isobit.quantsim import QuantSim
from isobit_torch.backend import TorchBackend
from isobit_torch.simulate.quantizers import QUANTIZERS, Quantizer
from isobit_torch.simulate.simulator import Simulator


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.2)
        self.fc = nn.Linear(8, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.norm(self.conv(image)))
        return self.fc(self.drop(x.mean((2, 3))))


def calibrated(module: nn.Module, data: list[object]) -> QuantSim:
    opened = TorchBackend().open(module.eval(), data[0])
    sim = QuantSim.of_backend_model(opened, registry().target("default"), QuantConfig())
    sim.calibrate(data, "minmax")
    return sim


@pytest.fixture
def image() -> torch.Tensor:
    return torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def sim(image: torch.Tensor) -> QuantSim:
    torch.manual_seed(0)
    return calibrated(Classifier(), [image])


# --- copies and files ------------------------------------------------------------------------------------------------


def test_deepcopy_is_independent(sim: QuantSim, image: torch.Tensor) -> None:
    sim.trainable()
    with torch.no_grad():
        expected = sim.model(image)
        copied = copy.deepcopy(sim.model)
        for parameter in copied.parameters():
            parameter.mul_(0.5)
        assert torch.equal(sim.model(image), expected)
        assert not torch.equal(copied(image), expected)
    assert type(copied) is not nn.Module
    assert isinstance(copied, Simulator)
    assert set(dict(copied.named_parameters())) == set(dict(sim.model.named_parameters()))


def test_state_dict_goes_both_ways(sim: QuantSim, image: torch.Tensor, tmp_path) -> None:
    """The simulator's into another simulator; the user's own part of it back into the user's module."""
    torch.save(sim.model.state_dict(), tmp_path / "sim.pt")
    saved = torch.load(tmp_path / "sim.pt", weights_only=True)
    torch.manual_seed(7)
    other = calibrated(Classifier(), [image * 3])
    other.model.load_state_dict(saved, strict=True)
    with torch.no_grad():
        assert torch.equal(other.model(image), sim.model(image))
    module = Classifier().eval()
    module.load_state_dict({key: v for key, v in saved.items() if not key.startswith(QUANTIZERS)}, strict=True)
    with torch.no_grad():
        np.testing.assert_allclose(module(image).numpy(), sim.run_float(image)["output"], atol=1e-6)


def test_no_pickle_of_programs(sim: QuantSim, tmp_path) -> None:
    with pytest.raises(TypeError, match="state_dict"):
        torch.save(sim.model, tmp_path / "model.pt")


# --- devices and element types ---------------------------------------------------------------------------------------


def test_wider_and_narrower_floats(sim: QuantSim, image: torch.Tensor) -> None:
    """Quantizers work in float32 whatever the model's type is; what enters and leaves them has the model's type."""
    with torch.no_grad():
        expected = sim.model(image)
        double = copy.deepcopy(sim.model).double()
        output = double(image.double())
        assert output.dtype == torch.float64
        step = float(sim.encodings["fc"].scale)
        assert float((output - expected).abs().max()) <= 1.01 * step
        for dtype in (torch.float16, torch.bfloat16):
            half = copy.deepcopy(sim.model).to(dtype)
            assert half(image.to(dtype)).dtype == dtype
            for quantizer in half.quantizers.values():
                assert quantizer.scale.dtype == torch.float32
                assert quantizer.zero_point.dtype == torch.int32
        back = copy.deepcopy(sim.model).double().float()
        assert torch.equal(back(image), expected)


def test_to_another_device(sim: QuantSim, image: torch.Tensor) -> None:
    """The meta device stands in for one: all tensors follow, and the whole graph computes there."""
    model = copy.deepcopy(sim.model).to("meta")
    assert {t.device.type for t in (*model.parameters(), *model.buffers())} == {"meta"}
    for training in (False, True):
        with torch.no_grad():
            output = model.train(training)(image.to("meta"))
        assert output.shape == (5, 4)
        assert output.device.type == "meta"


# --- compiling and tracing -------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compile(sim: QuantSim, image: torch.Tensor, compiler: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(sim.model, backend=compiler, fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(image), sim.model(image))
        assert torch.equal(compiled(image[:3]), sim.model(image[:3]))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compile_trains(sim: QuantSim, image: torch.Tensor) -> None:
    torch._dynamo.reset()
    sim.trainable()
    gradients = []
    for run in (sim.model, torch.compile(sim.model, backend="aot_eager", fullgraph=True)):
        sim.model.zero_grad()
        run(image).square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in sim.model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_export_by_the_user(sim: QuantSim, image: torch.Tensor) -> None:
    program = torch.export.export(sim.model, (image,), strict=False)
    with torch.no_grad():
        assert torch.equal(program.module()(image), sim.model(image))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("gradients", [True, False])
def test_trace_by_the_user(sim: QuantSim, image: torch.Tensor, gradients: bool) -> None:
    """The kernel in NumPy's memory is not seen by a trace, so quantizers compute with torch's operations there."""
    with torch.set_grad_enabled(gradients):
        traced = torch.jit.trace(sim.model, image)
    with torch.no_grad():
        assert torch.equal(traced(image * 0.7), sim.model(image * 0.7))


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("learn", [False, True])
def test_training_lowers_a_loss(learn: bool) -> None:
    """Towards half of the float model's outputs: a goal inside the ranges, far above the rounding noise."""
    torch.manual_seed(0)
    module, x = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)), torch.randn(64, 6)
    sim = calibrated(module, [x])
    model = sim.model.train()
    if learn:
        sim.trainable()
    scales = {name: q.scale.detach().clone() for name, q in model.quantizers.items()}
    goal = 0.5 * module(x).detach()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = functional.mse_loss(model(x), goal)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]
    moved = [name for name, q in model.quantizers.items() if not torch.equal(q.scale.detach(), scales[name])]
    assert bool(moved) == learn
    learned = model.quantizers["0_weight"].scale.detach()
    assert np.array_equal(sim.encodings["0.weight"].scale, learned)
    model.eval()
    with torch.no_grad():
        assert torch.equal(model(x), torch.from_numpy(sim.run(x)["output"]))


def test_hooks_on_quantizers(sim: QuantSim, image: torch.Tensor) -> None:
    outputs: dict[str, torch.Tensor] = {}
    for name, module in sim.model.named_modules():
        if isinstance(module, Quantizer):
            module.register_forward_hook(
                lambda m, args, out, name=name: outputs.__setitem__(name, out.detach().clone())
            )
    with torch.no_grad():
        result = sim.model(image)
    assert set(outputs) == {f"{QUANTIZERS}.{key}" for key in sim.model.quantizers}
    assert torch.equal(outputs[f"{QUANTIZERS}.fc"], result)
    assert set(f"{QUANTIZERS}.{key}" for key in sim.model.quantizers) <= set(dict(sim.model.named_modules()))


def test_data_parallel(sim: QuantSim, image: torch.Tensor) -> None:
    parallel = nn.DataParallel(sim.model)  # without a GPU it calls the module itself
    with torch.no_grad():
        assert torch.equal(parallel(image), sim.model(image))


# --- calls and results -----------------------------------------------------------------------------------------------


@dataclass
class Output:
    logits: torch.Tensor
    hidden: torch.Tensor | None = None


pytree.register_dataclass(Output)


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.fc = nn.Embedding(20, 8), nn.Linear(8, 3)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor | None = None, *, scale: torch.Tensor) -> Output:
        hidden = self.embedding(tokens) * scale
        if mask is not None:
            hidden = hidden * mask.unsqueeze(-1).to(hidden.dtype)
        return Output(self.fc(hidden), hidden)


def test_calls_by_name_and_dataclasses() -> None:
    torch.manual_seed(0)
    batch = {"tokens": torch.randint(0, 20, (3, 5)), "mask": torch.ones(3, 5, dtype=torch.int64),
             "scale": torch.rand(3, 1, 1) + 0.5}  # fmt: skip
    sim = calibrated(Tagger(), [batch])
    with torch.no_grad():
        by_name = sim.model(**batch)
        mixed = sim.model(batch["tokens"], batch["mask"], scale=batch["scale"])
        turned = sim.model(**dict(reversed(batch.items())))
    assert type(by_name) is Output
    assert by_name.hidden is not None
    for other in (mixed, turned):
        assert torch.equal(other.logits, by_name.logits)
    assert list(sim.run(batch)) == ["logits", "hidden"]


def test_huggingface_batches_and_outputs() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.DistilBertConfig(vocab_size=50, dim=16, n_layers=1, n_heads=2, hidden_dim=32)
    module = transformers.DistilBertForSequenceClassification(config)
    ids = torch.randint(0, 50, (3, 6))
    batch = transformers.BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    sim = calibrated(module, [batch])
    with torch.no_grad():
        expected, simulated = module(**batch), sim.model(**batch)
    assert type(simulated) is type(expected)
    assert list(simulated) == list(expected) == ["logits"]
    np.testing.assert_allclose(simulated.logits, expected.logits, atol=0.1 * float(expected.logits.abs().max()))
    np.testing.assert_array_equal(sim.run(batch)["logits"], simulated.logits.numpy())
