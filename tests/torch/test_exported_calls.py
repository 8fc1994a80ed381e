"""Calls that torch.onnx.export writes in several nodes, or that it promotes before it writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import isobit

pytest.importorskip("onnxruntime")
from executed import Executed

X = torch.from_numpy(np.random.default_rng(6).standard_normal((4, 5, 6)).astype(np.float32) * 2)


class Calls(nn.Module):
    """Calls that all read one input, which others read too: as it is, and rounded."""

    def forward(self, x):
        results = {name: call(x) + x for name, call in CALLS.items()}
        return {**results, "as it is": torch.cat([x, x], -1)}


CALLS = {
    "softplus": functional.softplus,
    "softplus of another beta": lambda x: functional.softplus(x, 2.0),
    "clamp int and float": lambda x: x.clamp(-1, 1.5),
    "clamp float and int": lambda x: torch.clip(x, -0.5, 1),
    "clamp ints": lambda x: x.clamp(-1, 1),
    "clamp_min": lambda x: x.clamp(min=0),
    "hardtanh": lambda x: functional.hardtanh(x, -1, 1.5),
    "mish": functional.mish,
    "selu": functional.selu,
    "silu": functional.silu,
    "logsigmoid": functional.logsigmoid,
    "hardswish": functional.hardswish,
    "attention": lambda x: functional.scaled_dot_product_attention(x, x, x),
    "softmin": lambda x: functional.softmin(x, -1),
}


def test_every_reader_has_its_quantizer_in_the_file(tmp_path: Path):
    module = Calls().eval()
    sim = isobit.quantize(module, [(X,)], target="default", progress=False, method="minmax")
    floats, simulated = sim.run_float((X,)), sim.run((X,))
    batch = {sim.graph.inputs[0]: X.numpy()}
    executed = Executed(sim, tmp_path / "out")
    written = executed.run(batch)
    for key, output in zip(floats, module(X).values(), strict=True):
        np.testing.assert_allclose(floats[key], output.numpy(), atol=1e-5)
        np.testing.assert_allclose(written[key], simulated[key], atol=np.abs(simulated[key]).max() / 100)
    comparison = executed.compare(batch)
    assert comparison.equal == comparison.values
    assert comparison.quantizers > 2 * len(CALLS)


@pytest.mark.parametrize("settings", [{}, {"activations": "int2 asymmetric"}, {"activations": "int16"}])
def test_what_one_node_reads_and_the_model_returns_is_quantized_for_the_node(settings, tmp_path: Path):
    """Both the input and a value inside are returned as they are, and quantized where a part of them is read."""
    import onnxruntime

    class Returned(nn.Module):
        def forward(self, x):
            inner = torch.tanh(x[:, -1])
            return torch.relu(inner[:, :3]), x.reshape(x.shape[0], -1, 5), inner.reshape(-1, 5)

    batch = torch.linspace(-2, 3, 4 * 6 * 5).reshape(4, 6, 5)
    sim = isobit.quantize(
        Returned().eval(), [batch], progress=False, **{"target": "default", "method": "minmax", **settings}
    )
    result = sim.export(tmp_path)
    assert not any(check.error for check in result.checks)
    session = onnxruntime.InferenceSession(result["model"])
    outputs = session.run(None, {session.get_inputs()[0].name: batch.numpy()})
    for values, expected in zip(outputs, sim.run(batch).values(), strict=True):
        np.testing.assert_allclose(values, expected, atol=1e-5)


CHANGE_NOTHING = {
    "pad": lambda x: functional.pad(x, (0, 0, 0, 0), mode="replicate"),
    "constant pad": lambda x: functional.pad(x, (0, 0, 0, 0)),
    "pool": lambda x: functional.adaptive_avg_pool2d(x, x.shape[-2:]),
    "slice": lambda x: x[:, 0:, :, 0:],
    "expand": lambda x: x.expand(-1, 3, -1, -1),
    "reshape": lambda x: x.reshape(x.shape),
    "dropout": lambda x: functional.dropout(x, 0.5, training=False),
}


@pytest.mark.parametrize("name", CHANGE_NOTHING)
def test_a_layer_that_reads_through_what_changes_nothing_has_a_quantizer_of_its_own(name: str, tmp_path: Path):
    """The value is read in float beside the layer."""

    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 1)

        def forward(self, x):
            inner = torch.sigmoid(x)
            return self.conv(CHANGE_NOTHING[name](inner)), functional.mish(inner)

    batch = torch.linspace(-2, 3, 2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    target = "onnxruntime-cpu-transformer"
    sim = isobit.quantize(Reads().eval(), [batch], target=target, recipe="basic", progress=False)
    assert any(str(site).endswith("[0]") for site in sim.plan.placements)
    assert Executed(sim, tmp_path).unequal_constants()[1] == []


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d, nn.Conv3d])
def test_convolutions_without_a_bias_run_in_every_session(kind: type[nn.Module], groups: int, tmp_path: Path):
    count = int(kind.__name__[-2])
    batch = torch.linspace(-2, 3, 2 * 4 * 5**count).reshape(2, 4, *[5] * count)
    sim = isobit.quantize(kind(4, 6, 3, groups=groups, bias=False).eval(), [batch], recipe="basic", progress=False)
    assert not any(check.error for check in sim.export(tmp_path).checks)


class Doubled(nn.Module):
    """Joins a tensor with itself, and compares it, so that each place in the list has a quantizer of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(torch.cat([x, x, x], 1)) + torch.where(x > 0, x, 2 * x).sum()


def test_a_list_that_holds_one_tensor_twice_is_exported(tmp_path: Path) -> None:
    x = torch.linspace(-2, 3, 24).reshape(4, 6)
    sim = isobit.QuantSim(Doubled().eval(), example_inputs=(x,), target="default")
    sim.calibrate([x])
    assert {f"cat[{index}]" for index in range(3)} <= {str(site) for site in sim.encodings}
    assert sim.export(tmp_path).checks[0].equal == 1
