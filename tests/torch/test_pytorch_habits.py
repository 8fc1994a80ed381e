"""What PyTorch users do with any module, done with the simulator."""

from __future__ import annotations

import copy
import importlib.util
import os
import socket
import subprocess
import sys
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
    sim.calibrate(data)
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


DDP = """
import sys
import numpy as np, torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from isobit.quantsim import QuantSim

try:
    import peft
except ImportError:
    peft = None

class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)
    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)))

def adapted():
    model = peft.get_peft_model(Small(), peft.LoraConfig(r=2, target_modules=["conv", "fc"]))
    model.add_adapter("second", peft.LoraConfig(r=1, target_modules=["conv", "fc"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return model

def gradients(model, module, x, y):
    module.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.requires_grad}

rank, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
torch.manual_seed(0)
images, labels = torch.randn(8, 3, 6, 6), torch.arange(8) % 4
saved = {}

def opened(module):
    sim = QuantSim(module.eval(), images, weights="int4")
    sim.calibrate([images], progress=False)
    return sim

def train(case, sim, differs):
    sim.trainable()
    single = gradients(sim.model, sim.model, images, labels)
    if rank:
        with torch.no_grad():
            sim.model.get_parameter(differs).zero_()  # DDP gives every rank the parameters of the first
    sim.model.zero_grad()
    model = DistributedDataParallel(sim.model)
    averaged = gradients(model, sim.model, images[rank * 4 : rank * 4 + 4], labels[rank * 4 : rank * 4 + 4])
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    after = {k: v.detach() for k, v in sim.model.named_parameters() if k in averaged}
    for kind, values in (("grad", averaged), ("single", single), ("after", after)):
        saved.update({f"{case}/{kind}/{name}": value.numpy().copy() for name, value in values.items()})

distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
train("plain", opened(Small()), "fc.weight")
if peft is not None:
    sim = opened(adapted())
    base = [sim.encodings[placement.site] for placement in sim.plan.of_kind("weight")]
    train("lora", sim, "base_model.model.fc.lora_A.default.weight")
    sim.adapters.use("second")
    train("second adapter", sim, "base_model.model.fc.lora_A.second.weight")
    assert base == [sim.encodings[placement.site] for placement in sim.plan.of_kind("weight")]
distributed.destroy_process_group()
np.savez(f"{folder}/{rank}.npz", **saved)
"""


def test_distributed_data_parallel(tmp_path) -> None:
    """Two processes with half of the batch each: the same gradients as one process with all of it.

    For each of two adapters (LoRA) on one base too, where peft is installed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    script = tmp_path / "train.py"
    script.write_text(DDP)
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), port, str(tmp_path)],
            env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"}, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    for process in ranks:
        _, errors = process.communicate(timeout=180)
        assert process.returncode == 0, errors
    first, second = (dict(np.load(tmp_path / f"{rank}.npz")) for rank in range(2))
    cases = ["plain", "lora", "second adapter"] if importlib.util.find_spec("peft") else ["plain"]
    for case in cases:
        names = [key.split("/")[-1] for key in first if key.startswith(f"{case}/grad/")]
        assert any(name.startswith(QUANTIZERS) for name in names)
        assert case == "plain" or {name.split(".")[-2] for name in names if "lora" in name} == {
            "second" if case == "second adapter" else "default"
        }
        for name in names:
            np.testing.assert_array_equal(first[f"{case}/grad/{name}"], second[f"{case}/grad/{name}"])
            np.testing.assert_array_equal(first[f"{case}/after/{name}"], second[f"{case}/after/{name}"])
            single = first[f"{case}/single/{name}"]
            np.testing.assert_allclose(
                first[f"{case}/grad/{name}"], single, atol=1e-3 * np.abs(single).max(), err_msg=f"{case}: {name}"
            )


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.dropout = nn.Linear(12, 36), nn.Linear(12, 12), 0.5

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        q, k, v = (t.unflatten(-1, (3, 4)).transpose(1, 2) for t in self.qkv(tokens).chunk(3, -1))
        mixed = functional.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        return self.out(mixed.transpose(1, 2).flatten(2))


class MultiHead(nn.Module):
    def __init__(self, need_weights: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(12, 3, dropout=0.5, batch_first=True)
        self.need_weights = need_weights

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.attention(tokens, tokens, tokens, need_weights=self.need_weights)[0]


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(12, 12)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return functional.dropout(self.fc(tokens), 0.5 if self.training else 0.0, self.training)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (SelfAttention(), "scaled_dot_product_attention.dropout"),
        (nn.Sequential(SelfAttention()), "0.scaled_dot_product_attention.dropout"),
        (MultiHead(need_weights=False), "attention.scaled_dot_product_attention.dropout"),
        (MultiHead(need_weights=True), "attention.dropout"),
        (Functional(), "dropout"),
    ],
    ids=["sdpa", "nested", "multi-head", "multi-head with weights", "functional"],
)
def test_dropout_of_training(module: nn.Module, name: str) -> None:
    """`dropout_p` is 0 in the evaluation mode in which a model is captured; train() brings the real one back."""
    tokens = torch.randn(4, 6, 12)
    sim = calibrated(module, [tokens])
    dropout = next(node for node in sim.model.graph.nodes if node.op == "call_module" and node.meta.get("name") == name)
    assert sim.model.get_submodule(dropout.target).probability == 0.5
    assert not any(m.training for m in module.modules())
    with torch.no_grad():
        np.testing.assert_allclose(sim.run_float(tokens)["output"], module(tokens).numpy(), atol=1e-5)
        assert torch.equal(sim.model(tokens), sim.model(tokens))
        sim.model.train()
        assert not torch.equal(sim.model(tokens), sim.model(tokens))
        torch.manual_seed(3)
        outputs = torch.stack([sim.model(tokens) for _ in range(64)])
    assert float(outputs.std(0).mean()) > 0.02  # every token varies


def test_opening_leaves_the_random_numbers_alone() -> None:
    module = SelfAttention().eval()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    TorchBackend().open(module, torch.zeros(2, 6, 12))
    assert torch.equal(torch.rand(3), expected)


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
