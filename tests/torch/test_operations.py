"""Operations one by one: open, calibrate, run, export, onnxruntime; what stays in float is pinned, with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from operations import GROUPS, IN_FLOAT, Group
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import _pytree as pytree

import isobit
from isobit.errors import ModelError

pytest.importorskip("onnxruntime")
from executed import Executed


def in_float(sim: isobit.QuantSim) -> set[str]:
    """The calls without a mapping."""
    return {note.split(" at ")[0] for note in sim.graph.notes if "stays in float" in note}


def check(module: nn.Module, batch: Any, folder: Path) -> isobit.QuantSim:
    """The whole way, each result against the module's own, then onnxruntime's against the simulator's."""
    module.eval()
    sim = isobit.QuantSim(module, batch)
    with torch.no_grad():
        expected = module(**batch) if isinstance(batch, dict) else module(batch)
    leaves = [leaf for leaf in pytree.tree_leaves(expected) if isinstance(leaf, Tensor)]
    for (name, result), leaf in zip(sim.run_float(batch).items(), leaves, strict=True):
        np.testing.assert_allclose(result, leaf.numpy(), rtol=1e-4, atol=1e-4, err_msg=name)
    sim.calibrate([batch], progress=False)
    named = batch if isinstance(batch, dict) else {sim.graph.inputs[0]: batch}
    arrays = {name: tensor.numpy() for name, tensor in named.items()}
    executed = Executed(sim, folder).run(arrays)
    for name, simulated in sim.run(batch).items():
        assert executed[name].shape == simulated.shape, name
        if simulated.dtype.kind == "f":
            assert decibels(simulated, executed[name]) > 35, name
        else:
            assert np.mean(simulated == executed[name]) > 0.95, name
    return sim


def decibels(signal: np.ndarray, other: np.ndarray) -> float:
    """Signal-to-noise ratio of what is finite."""
    finite = np.isfinite(signal)
    np.testing.assert_array_equal(finite, np.isfinite(other))
    signal, other = signal[finite].astype(np.float64), other[finite].astype(np.float64)
    noise = np.square(signal - other).sum()
    return np.inf if noise == 0 else 10 * np.log10(np.square(signal).sum() / noise)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", GROUPS)
def test_operations(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    stem, shape, operations, floats = GROUPS[name]
    sim = check(Group(stem, operations()), torch.randn(shape), tmp_path)
    calls = {f"aten::{call}" for call in floats.split()}
    assert in_float(sim) == calls
    assert calls <= IN_FLOAT.keys()


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        return self.attention(x, x, x, key_padding_mask=padding, need_weights=False)[0]


def test_attention_of_torch_with_a_padding_mask(tmp_path: Path) -> None:
    """The mask's length must be that of x, which is fixed: so is the mask's, and that is said."""
    torch.manual_seed(0)
    padding = torch.zeros(2, 6, dtype=torch.bool)
    padding[1, 4:] = True
    sim = check(Masked(), {"x": torch.randn(2, 6, 8), "padding": padding}, tmp_path)
    assert in_float(sim) <= {"aten::zeros_like"}
    assert sim.graph.tensors["padding"].shape == ("batch", 6)
    assert any("the sequence length is fixed" in note for note in sim.graph.notes)


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, add_bias_kv=True)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True, activation="gelu")
        self.decoder = nn.TransformerDecoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x: Tensor, padding: Tensor) -> tuple[Tensor, ...]:
        mixed, weights = self.attention(x, x, x, key_padding_mask=padding)
        encoded = self.layer(mixed)
        return mixed, weights, encoded, self.decoder(x, encoded)


def test_a_transposed_output_that_is_read_on(tmp_path: Path) -> None:
    """onnxruntime would drop the Transpose before `mixed`, whose readers transpose it back."""
    torch.manual_seed(0)
    padding = torch.zeros(2, 6, dtype=torch.bool)
    padding[1, 4:] = True
    check(Layers(), {"x": torch.randn(2, 6, 8), "padding": padding}, tmp_path)


class Scaled(nn.Module):
    """A learned scale by channel, viewed to broadcast over an image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.scale = nn.Parameter(torch.linspace(0.5, 2.0, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale.unsqueeze(-1).unsqueeze(-1) * self.conv(x)


def test_a_viewed_constant_keeps_its_shape_in_the_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    check(Scaled(), torch.randn(2, 3, 9, 9), tmp_path)


class TokenNorm(nn.Module):
    """LeViT's batch norm of batch and tokens as one axis."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm = nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        result: Tensor = self.norm(y.flatten(0, 1)).reshape_as(y)
        return result


def test_batch_norm_of_batch_and_tokens_as_one_axis() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 6)
    sim = isobit.QuantSim(TokenNorm().eval(), x)
    before = sim.run_float(x)["output"]
    sim.apply(isobit.techniques.FoldBatchNorms())
    assert "BatchNormalization" not in {node.op for node in sim.graph.nodes}
    np.testing.assert_allclose(sim.run_float(x)["output"], before, atol=1e-5)


class Tables(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4, padding_idx=0)
        self.bags = nn.ModuleList(nn.EmbeddingBag(10, 4, mode=mode) for mode in ("mean", "sum", "max"))

    def forward(self, ids: Tensor) -> list[Tensor]:
        one_hot = functional.one_hot(ids, 10).float()
        return [self.embedding(ids), one_hot, *(bag(ids) for bag in self.bags)]


def test_tables(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sim = check(Tables(), {"ids": torch.randint(0, 10, (2, 6))}, tmp_path)
    assert in_float(sim) <= {"aten::one_hot"}
    assert sum(node.op == "Gather" for node in sim.graph.nodes) == 4


class Two(nn.Module):
    """A weight that is an input, and a size that follows another input."""

    def forward(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        y = functional.conv2d(x, weight)
        return y, functional.interpolate(y, size=x.shape[-2:], mode="bilinear") + x[:, :3]


def test_two_inputs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sim = check(Two(), {"x": torch.randn(2, 4, 8, 8), "weight": torch.randn(3, 4, 3, 3)}, tmp_path)
    assert in_float(sim) == set()


def test_an_input_without_a_batch_axis(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sim = check(nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU()), torch.randn(4, 8, 8), tmp_path)
    assert sim.graph.tensors["input"].shape == (4, 8, 8)


@pytest.mark.parametrize(
    "operation",
    [lambda x: x.median(-1).values, torch.digamma],
    ids=["median", "digamma"],
)
def test_what_onnx_cannot_say_is_run_and_not_exported(operation: Any, tmp_path: Path) -> None:
    sim = isobit.QuantSim(Group(nn.Linear(8, 8), {"result": operation}).eval(), torch.randn(2, 6, 8))
    sim.calibrate([torch.randn(2, 6, 8)], progress=False)
    assert sim.run(torch.randn(2, 6, 8))["result"].shape[0] == 2
    with pytest.raises(ModelError, match="ONNX has no operation for"):
        sim.export(tmp_path)


def test_folded_weights_are_said_and_quantized() -> None:
    layer = torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    sim = isobit.QuantSim(layer.eval(), torch.randn(2, 3, 6, 6))
    assert [node.op for node in sim.graph.nodes] == ["Conv"]
    assert any("train before quantizing" in note for note in sim.graph.notes)
    (weight,) = (p for p in sim.plan.of_kind("weight"))
    np.testing.assert_array_equal(sim.backend_model.weight(str(weight.site)), layer.weight.detach().numpy())
