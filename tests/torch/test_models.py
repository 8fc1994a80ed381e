"""Models as people write them: HuggingFace ones, in-place code, what cannot be captured."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from isobit.errors import ModelError
from isobit.placement import QuantConfig
from isobit.plugins import registry
from isobit.quantsim import QuantSim
from isobit.techniques import FoldBatchNorms
from isobit_torch.backend import TorchBackend


def simulator(module: nn.Module, example: object) -> QuantSim:
    return QuantSim.of_backend_model(
        TorchBackend().open(module.eval(), example), registry().target("default"), QuantConfig()
    )


def test_bert(tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    module = transformers.BertModel(config).eval()
    rng = np.random.default_rng(0)
    data = []
    for length in (5, 7, 7):
        mask = np.ones((3, length), np.int64)
        mask[0, 3:] = 0
        data.append({"input_ids": rng.integers(0, 50, (3, length)), "attention_mask": mask})
    sim = simulator(module, transformers.BatchEncoding({k: torch.from_numpy(v) for k, v in data[1].items()}))
    assert sim.graph.notes == ()
    ops = {node.op for node in sim.graph.nodes}
    assert {"Softmax", "MatMul", "LayerNormalization", "Gelu", "Gather", "Linear"} <= ops
    with torch.no_grad():
        expected = module(**{k: torch.from_numpy(v) for k, v in data[0].items()})
    outputs = sim.run_float(data[0])
    assert list(outputs) == ["last_hidden_state", "pooler_output"]
    np.testing.assert_allclose(outputs["last_hidden_state"], expected.last_hidden_state.numpy(), atol=1e-5)
    sim.calibrate(data)
    native = sim.model(**{k: torch.from_numpy(v) for k, v in data[0].items()})
    assert type(native) is type(expected)
    paths = sim.export(tmp_path)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(str(paths["model"]), options)
    for batch in data:
        simulated = sim.run(batch)["last_hidden_state"]
        executed = session.run(["last_hidden_state"], batch)[0]
        assert np.mean(np.abs(executed - simulated) > 1e-4) < 0.01


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(12, 36)
        self.out = nn.Linear(12, 12)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        q, k, v = (t.unflatten(-1, (3, 4)).transpose(1, 2) for t in self.qkv(tokens).chunk(3, -1))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))


def test_attention_is_written_out() -> None:
    torch.manual_seed(0)
    module = Attention().eval()
    sim = simulator(module, torch.randn(2, 5, 12))
    products = [node for node in sim.graph.nodes if node.op == "MatMul"]
    assert len(products) == 2
    assert products[0].attributes["scale"] == pytest.approx(0.5)
    x = torch.randn(3, 5, 12)
    np.testing.assert_allclose(sim.run_float(x)["output"], module(x).detach().numpy(), atol=1e-5)


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.scale = nn.Parameter(torch.rand(4, 1, 1) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.scale * self.conv(x)
        functional.relu_(y)
        y += 1
        z = y.clone()
        z[:, 0] = 0
        return y * z


def test_in_place_code() -> None:
    torch.manual_seed(0)
    module = InPlace().eval()
    sim = simulator(module, torch.randn(2, 3, 6, 6))
    x = torch.randn(3, 3, 6, 6)
    expected = module(x).detach().numpy()
    np.testing.assert_allclose(sim.run_float(x)["output"], expected, atol=1e-5)
    assert sim.apply(FoldBatchNorms())[0].changed  # a constant in front of its product is folded too
    np.testing.assert_allclose(sim.run_float(x)["output"], expected, atol=1e-5)


class Unmapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.special.i0(self.first(x))
        return self.second(y), y


def test_unmapped_operations_stay_in_float() -> None:
    sim = simulator(Unmapped(), torch.randn(2, 6))
    assert any("i0" in note for note in sim.graph.notes)
    sim.calibrate([torch.randn(4, 6)])
    assert list(sim.run(torch.randn(2, 6))) == ["output", "output_1"]


def test_a_missing_example_is_explained() -> None:
    with pytest.raises(ModelError, match="example_inputs"):
        simulator(nn.Linear(2, 2), None)


def test_a_misspelt_argument_is_explained() -> None:
    with pytest.raises(ModelError, match="did you mean 'tokens'"):
        simulator(Attention(), {"token": torch.randn(2, 5, 12)})


def test_quantize_a_sequential_module(tmp_path) -> None:
    """nn.Sequential calls its argument ``input``, a Python builtin; the example comes from the data."""
    import isobit

    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 16, 3, stride=2),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    ).eval()  # fmt: skip
    data = [torch.randn(4, 3, 16, 16) for _ in range(4)]
    sim = isobit.quantize(module, data)
    assert sim.graph.inputs == ("input",)
    simulated = sim.run(data[0])["output"]
    with torch.no_grad():
        expected = module(data[0]).numpy()
    assert np.abs(simulated - expected).max() < 0.1 * np.abs(expected).max()
    session = onnxruntime.InferenceSession(str(sim.export(tmp_path)["model"]))
    np.testing.assert_allclose(session.run(None, {"input": data[0].numpy()})[0], simulated, atol=0.05)
