"""What looks like a model and is none that can be quantized: what was found, and the line to write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import isobit
from isobit.errors import IsobitError


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU()).eval()


X = torch.randn(5, 4)


def simulator() -> Any:
    sim = isobit.QuantSim(net(), X)
    sim.calibrate([X], progress=False)
    return sim.model


def exported() -> Any:
    return torch.export.export(net(), (X,))


def script() -> Any:
    return torch.jit.trace(net(), X)


def part_script() -> Any:
    return nn.Sequential(nn.Linear(4, 4), torch.jit.script(net())).eval()


def prepared() -> Any:
    module = nn.Sequential(torch.ao.quantization.QuantStub(), net(), torch.ao.quantization.DeQuantStub()).train()
    module.qconfig = torch.ao.quantization.get_default_qat_qconfig("x86")
    return torch.ao.quantization.prepare_qat(module).eval()


def dynamic() -> Any:
    return torch.ao.quantization.quantize_dynamic(net(), {nn.Linear})


def rounding() -> Any:
    return nn.Sequential(net(), torch.ao.quantization.FakeQuantize()).eval()


def observed() -> Any:
    return nn.Sequential(net(), torch.ao.quantization.MinMaxObserver()).eval()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda: net().state_dict(),
            r"module\.load_state_dict\(weights\), then isobit\.quantize\(module\.eval\(\), data\)",
        ),
        (lambda: {"epoch": 3, "model": net().state_dict()}, r"load_state_dict\(checkpoint\['model'\]\)"),
        (exported, r"isobit\.quantize\(program\.module\(\), data\)"),
        (script, r"torch\.onnx\.export\(module, example_inputs, 'model\.onnx', dynamo=False\)"),
        (part_script, r"the part '1' is a TorchScript module.*dynamo=False\)"),
        (prepared, "quantized already"),
        (lambda: nn.Linear, r"the class Linear: isobit\.quantize\(Linear\(\.\.\.\), data\)"),
        (lambda: net().forward, "with the object itself"),
        (lambda: torch.relu, "the forward of a torch.nn.Module"),
        (lambda: X, "with the model first"),
        (lambda: None, "it is no model"),
        (simulator, "a simulator that isobit has made"),
        (dynamic, "quantized already"),
        (rounding, "'1' is a torch.ao.quantization.fake_quantize.FakeQuantize"),
        (observed, "quantized already"),
    ],
)
@pytest.mark.filterwarnings(
    "ignore:torch.ao.quantization is deprecated",
    "ignore:`torch.jit",
    "ignore:reduce_range",
    "ignore:Please use quant_min",
    "ignore:torch.quantize_per",
)
def test_models(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(IsobitError, match=says):
        isobit.quantize(make(), [X], progress=False)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("images/", "the data is a text, 'images/'"),
        (5, "not int"),
        (
            torch.utils.data.TensorDataset(X),
            r"a TensorDataset, .* torch\.utils\.data\.DataLoader\(data, batch_size=32\)",
        ),
        (iter([X]), "make a list of it"),
        ([], "none could be taken"),
        (["a.png", "b.png"], "holds no tensor and no array, but str"),
        ([object()], "but object"),
        ([X.to_sparse()], r"pass x\.to_dense\(\)"),
        ([torch.nested.nested_tensor([X, X[:2]], layout=torch.jagged)], "to_padded_tensor"),
        ([{"image": X, "label": 1}], r"inputs=lambda batch: \{'input': batch\['image'\]\}"),
        ([(torch.arange(5), X)], r"it was given int64 \[5\]: .* inputs=lambda batch: batch\[1\]"),
    ],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_data(data: Any, says: str) -> None:
    with pytest.raises(IsobitError, match=says):
        isobit.quantize(net(), data, progress=False)


@pytest.mark.parametrize("x", [X.double(), X.double().numpy(), X.numpy().astype(np.float16)])
def test_data_of_another_precision_is_taken_as_the_model_is(x: Any) -> None:
    sim = isobit.quantize(net(), [x, x], progress=False)
    assert any("in another precision" in note for note in sim.graph.notes)
    assert sim.run(x)["output"].dtype == np.float32
