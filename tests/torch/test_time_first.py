"""Layers whose samples lie on the second axis, as is the default of PyTorch: batch and length are both open."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import isobit


class Stream(nn.Module):
    """Several recurrent layers, their states taken and returned."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.LSTM(6, 8, 2), nn.GRU(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, h: Tensor, c: Tensor, g: Tensor) -> tuple[Tensor, ...]:
        y, (h, c) = self.first(x, (h, c))
        y, g = self.second(y, g)
        return self.head(y), h, c, g

    @staticmethod
    def batch(length: int, count: int) -> tuple[Tensor, ...]:
        return torch.randn(length, count, 6), *(torch.randn(n, count, 8) for n in (2, 2, 1))


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.TransformerDecoderLayer(8, 2, 16), nn.Linear(8, 3)

    def forward(self, target: Tensor, source: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(target.size(0))
        return self.head(self.body(target, source, tgt_mask=mask))

    @staticmethod
    def batch(length: int, count: int) -> tuple[Tensor, ...]:
        return torch.randn(length, count, 8), torch.randn(length - 2, count, 8)


class Padded(nn.Module):
    """A mask with the samples first beside a sequence with the time first."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(8, 2), nn.Linear(8, 3)

    def forward(self, x: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        y, weights = self.attention(x, x, x, key_padding_mask=padding)
        return self.head(y), weights

    @staticmethod
    def batch(length: int, count: int) -> tuple[Tensor, ...]:
        padding = torch.zeros(count, length, dtype=torch.bool)
        padding[0, -2:] = True
        return torch.randn(length, count, 8), padding


@pytest.mark.parametrize("kind", [Stream, Decoder, Padded])
def test_another_count_and_another_length(kind: Callable[[], nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = kind().eval()
    make = kind.batch  # type: ignore[attr-defined]
    data = [make(5, 4), make(5, 2)]  # a smaller last batch
    sim = isobit.QuantSim(module, data[0])
    sim.calibrate(data, "minmax", progress=False)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(str(sim.export(tmp_path)["model"]), options)
    for length, count in ((5, 4), (5, 3), (7, 2)):
        batch = make(length, count)
        with torch.no_grad():
            wanted = module(*batch)
        wanted = wanted if isinstance(wanted, tuple) else (wanted,)
        for found, value in zip(sim.run_float(batch).values(), wanted, strict=True):
            np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-5)
        feeds = {node.name: x.numpy() for node, x in zip(session.get_inputs(), batch, strict=True)}
        for found, value in zip(session.run(None, feeds), sim.run(batch).values(), strict=True):
            step = np.ptp(value) / 255
            assert np.mean(np.abs(found - value) < 1e-4) > 0.9
            np.testing.assert_allclose(found, value, atol=1.1 * step)


class Turned(nn.Module):
    """A module with samples and channels in front, which turns its input around itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lstm, self.head = nn.Conv1d(3, 6, 3), nn.LSTM(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.lstm(self.conv(x).permute(2, 0, 1))[0][-1])
        return y


def test_channels_are_no_samples() -> None:
    sim = isobit.QuantSim(Turned().eval(), torch.randn(4, 3, 12))
    assert sim.graph.tensors["x"].shape == ("batch", 3, 12)
    assert not sim.graph.notes
